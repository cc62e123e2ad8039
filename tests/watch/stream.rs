//! The watch under tokio.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream as _;
use uverbs::{ErrorKind, WatchStream};

use super::{device, machine};

async fn next(stream: &mut WatchStream) -> String {
    let next = poll_fn(|context| Pin::new(&mut *stream).poll_next(context));
    let next = tokio::time::timeout(Duration::from_secs(20), next).await.expect("in time");
    next.expect("it does not end").expect("no error").to_string()
}

#[test]
fn a_stream_wakes_for_each_change() {
    let (machine, registry) = machine();
    let outside = registry.watch().expect("a watch").into_stream().expect_err("no runtime");
    assert_eq!(outside.kind(), ErrorKind::Unsupported);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let registry_of_task = registry.clone();
    let (machine_of_task, (tell, told)) = (machine.clone(), std::sync::mpsc::channel());
    let task = runtime.spawn(async move {
        let stream = registry_of_task.watch().and_then(uverbs::Watch::into_stream);
        let mut stream = stream.expect("a stream");
        for round in 0..50 {
            let id = machine_of_task.instance_of(0);
            tell.send(round).expect("the other thread");
            let what = if round % 2 == 0 { "added" } else { "removed" };
            assert_eq!(next(&mut stream).await, format!("rxe0 (uverbs0): {what}"));
            if round % 2 == 0 {
                assert_eq!(next(&mut stream).await, "rxe0 (uverbs0): ready");
            }
            assert_eq!(stream.devices().is_empty(), id.is_some());
            // The next event must not wait for the gap between two lists, which the simulated clock never reaches.
            machine_of_task.advance(Duration::from_secs(1));
        }
    });
    // From another thread, while the task waits or is about to.
    let other = std::thread::spawn(move || {
        while let Ok(round) = told.recv() {
            if round % 3 == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
            match machine.instance_of(0) {
                Some(id) => machine.remove(id),
                None => drop(machine.add(device("rxe0"))),
            }
        }
    });
    runtime.block_on(task).expect("no panic");
    other.join().expect("no panic");
}
