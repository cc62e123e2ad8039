//! The system calls of an open and of `verify`, one by one: the sequence that the exploration, the boundary runner and
//! the comparison were run on (`audits/`). Whoever changes it runs them again.

use std::sync::{Arc, Mutex};

use uverbs::sim::{DeviceSpec, Machine, Verdict};
use uverbs::{Host, Registry};

#[test]
fn an_open_makes_these_calls() {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
    let host = Host::simulated(&machine).expect("a host");
    let device = Registry::new(host).devices().expect("a list").by_name("rxe0").expect("listed");
    drop(device.open().expect("the first, which learns index, GUID and number"));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    machine.on_call(move |world, call| {
        let line = format!("{:?} {}", call.kind(), call.detail(world));
        seen.lock().expect("no panic").push(line);
        Verdict::Continue
    });
    let take = || std::mem::take(&mut *calls.lock().expect("no panic"));
    let context = device.open().expect("opened");
    assert_eq!(take(), OPEN);
    device.verify(&context).expect("verified");
    assert_eq!(take(), VERIFY);
}

const OPEN: [&str; 25] = [
    // 2: pin.
    "Openat2 /sys: devices/virtual/infiniband_verbs/uverbs0 O_PATH",
    "Fstat /sys/devices/virtual/infiniband_verbs/uverbs0",
    "Openat2 /sys/devices/virtual/infiniband_verbs/uverbs0: ibdev",
    "Fstat /sys/devices/virtual/infiniband_verbs/uverbs0/ibdev",
    "Openat2 /sys/devices/virtual/infiniband_verbs/uverbs0: dev",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/dev",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/ibdev",
    "RdmaSocket NETLINK_RDMA",
    // 3 and 4: node, open.
    "Openat2 /dev: infiniband/uverbs0 O_PATH",
    "Fstat /dev/infiniband/uverbs0",
    "Openat2 /dev: infiniband/uverbs0",
    "Fstat /dev/infiniband/uverbs0",
    // 5: revalidate.
    "Openat2 /sys: devices/virtual/infiniband_verbs/uverbs0 O_PATH",
    "Fstat /sys/devices/virtual/infiniband_verbs/uverbs0",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/dev",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/ibdev",
    "Fstat /sys/devices/virtual/infiniband_verbs/uverbs0/ibdev",
    // 6: GET_CONTEXT.
    "VerbsIoctl 0.3",
    // 7: QUERY_DEVICE; on the new thread ALLOC_PD, the look, DEALLOC_PD; the last sign of life.
    "VerbsIoctl 0.0",
    "Thread new",
    "VerbsIoctl 0.0",
    "Send RES_PD_GET 0: 1",
    "Recv socket",
    "VerbsIoctl 0.0",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/dev",
];

const VERIFY: [&str; 17] = [
    "Duplicate /dev/infiniband/uverbs0",
    "Openat2 /sys: devices/virtual/infiniband_verbs/uverbs0 O_PATH",
    "Fstat /sys/devices/virtual/infiniband_verbs/uverbs0",
    "Openat2 /sys/devices/virtual/infiniband_verbs/uverbs0: ibdev",
    "Fstat /sys/devices/virtual/infiniband_verbs/uverbs0/ibdev",
    "Openat2 /sys/devices/virtual/infiniband_verbs/uverbs0: dev",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/dev",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/ibdev",
    "FstatCmd /dev/infiniband/uverbs0",
    "RdmaSocket NETLINK_RDMA",
    "VerbsIoctl 0.0",
    "Thread new",
    "VerbsIoctl 0.0",
    "Send RES_PD_GET 0: 2",
    "Recv socket",
    "VerbsIoctl 0.0",
    "Pread /sys/devices/virtual/infiniband_verbs/uverbs0/dev",
];
