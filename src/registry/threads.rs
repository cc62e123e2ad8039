//! Work that several threads share.

use std::panic::resume_unwind;
use std::thread;

/// So many things make a thread worth its start.
const PART: usize = 32;

/// Splits a list into parts and returns the results of `run` for them, in order. Up to `threads` threads run it, including
/// the calling one, which takes over the part of a thread that cannot be started.
pub(super) fn by_parts<T: Sync, R: Send>(
    list: &[T],
    threads: usize,
    run: impl Fn(&[T]) -> Vec<R> + Sync,
) -> Vec<R> {
    let threads = threads.min(list.len() / PART);
    if threads <= 1 {
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
