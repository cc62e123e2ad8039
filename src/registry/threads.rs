//! Work that several threads share.

use std::panic::resume_unwind;
use std::thread;

/// From this many things on, a thread is worth its start.
const MANY: usize = 64;

/// What `run` returns for the parts of a list, in order. Up to `threads` threads run it, of which the calling one is one.
pub(super) fn by_parts<T: Sync, R: Send>(
    list: &[T],
    threads: usize,
    run: impl Fn(&[T]) -> Vec<R> + Sync,
) -> Vec<R> {
    if threads <= 1 || list.len() < MANY {
        return run(list);
    }
    let (first, others) = list.split_at(list.len().div_ceil(threads));
    let run = &run;
    thread::scope(|scope| {
        let others = others.chunks(first.len()).map(|part| {
            thread::Builder::new().spawn_scoped(scope, move || run(part)).map_err(|_| part)
        });
        let others: Vec<_> = others.collect();
        let mut found = run(first);
        for other in others {
            found.extend(match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // Threads are forbidden or used up.
                Err(part) => run(part),
            });
        }
        found
    })
}
