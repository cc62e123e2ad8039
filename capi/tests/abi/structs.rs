//! Structs and arrays whose size or room the caller passes, and lookups by PCI address.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;
use std::ptr;

use uverbs::sim::DeviceSpec;
use uverbs_capi::*;

use crate::{Scene, call, make};

/// What a function returns that fills a struct: number, and kind of error.
type Filled = (c_int, u32);

/// Checks a function that fills a struct of that size: what it returns for other sizes, and what it writes.
fn cuts_and_extends(expected: usize, whole: usize, fill: impl Fn(*mut u8, usize) -> Filled) {
    assert_eq!(whole, expected);
    let fill = |bytes: &mut [u8], size| fill(bytes.as_mut_ptr(), size);
    let mut full = vec![0x55; whole];
    assert_eq!(fill(&mut full, whole).0, 0);
    for size in 1..whole {
        let mut bytes = vec![0x55; whole];
        assert_eq!(fill(&mut bytes, size).0, 0);
        assert_eq!(bytes[..size], full[..size]);
        assert!(bytes[size..].iter().all(|&byte| byte == 0x55), "{size}");
    }
    let (mut bytes, longer) = (vec![0x55; 4096], whole + 104);
    assert_eq!(fill(&mut bytes, longer).0, 0);
    assert_eq!(bytes[..whole], full);
    assert!(bytes[whole..longer].iter().all(|&byte| byte == 0));
    assert!(bytes[longer..].iter().all(|&byte| byte == 0x55));
    assert_eq!(fill(&mut bytes, 4096).0, 0);
    for size in [0, 4097, usize::MAX] {
        assert_eq!(fill(&mut bytes, size), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT), "{size}");
    }
}

#[test]
fn a_struct_of_another_version_is_cut_or_extended() {
    let scene = Scene::new();
    let filled = |(number, kind, _): (c_int, u32, String)| (number, kind);
    cuts_and_extends(96, size_of::<uverbs_device_facts>(), |to, size| {
        // SAFETY: the buffer is at least that long.
        filled(call(|e| unsafe { uverbs_device_query(scene.device(), to.cast(), size, e) }))
    });
    let scene = Scene::of(|machine| {
        machine.add_pci_function(PCI, (0x15b3, 0x1017), 3);
        DeviceSpec::new("mlx5_0").beneath(PCI)
    });
    cuts_and_extends(424, size_of::<uverbs_parent>(), |to, size| {
        // SAFETY: the buffer is at least that long.
        filled(call(|e| unsafe { uverbs_device_parent(scene.device(), to.cast(), size, e) }))
    });
}

/// A function of a domain with the most digits.
const PCI: &str = "pci0000:3a/ffffffff:ff:1f.7";

#[test]
fn every_byte_of_a_parent_is_set() {
    let scene = Scene::of(|machine| {
        machine.add_pci_function(PCI, (0x15b3, 0x1017), 3);
        DeviceSpec::new("mlx5_0").beneath(PCI)
    });
    let size = size_of::<uverbs_parent>();
    let [one, other] = [0x55, 0xaa].map(|filler| {
        let mut bytes = vec![filler; size];
        // SAFETY: the buffer has that size.
        let number = call(|e| unsafe {
            uverbs_device_parent(scene.device(), bytes.as_mut_ptr().cast(), size, e)
        });
        assert_eq!(number.0, 0, "{}", number.2);
        bytes
    });
    assert_eq!(one, other);
    // The address as fields and as text, after six numbers.
    assert_eq!(one[32..40], [0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 7, 0]);
    assert_eq!(&one[40..64], b"ffffffff:ff:1f.7\0\0\0\0\0\0\0\0");
    // Of a function that is not known to be virtual there is no other.
    assert_eq!(one[64..96], [0; 32]);
}

#[test]
fn names_that_do_not_fit_are_cut() {
    let bus = ["../../../bus/", &"b\x1b".repeat(60)].concat();
    let scene = Scene::of(|machine| {
        machine.set_parent_link("platform/x", "subsystem", Some(bus.as_bytes()));
        DeviceSpec::new("a").beneath("platform/x")
    });
    let mut parent = MaybeUninit::<uverbs_parent>::uninit();
    let size = size_of::<uverbs_parent>();
    // SAFETY: there is room for one.
    let result =
        call(|e| unsafe { uverbs_device_parent(scene.device(), parent.as_mut_ptr(), size, e) });
    assert_eq!(result.0, 0, "{}", result.2);
    // SAFETY: it was filled.
    let parent = unsafe { parent.assume_init() };
    // SAFETY: it is ended by a NUL.
    let name = unsafe { CStr::from_ptr(parent.bus_name.as_ptr()) };
    assert_eq!(name.to_bytes(), &"b\x1b".repeat(60).as_bytes()[..63]);
    assert_eq!(parent.bus, UVERBS_BUS_OTHER);
}

#[test]
fn only_a_pci_address_is_looked_up() {
    let scene = Scene::new();
    let list = make(|list, error| uverbs_registry_list(scene.registry(), list, error));
    // SAFETY: it is alive until the end of this test.
    let listed = unsafe { list.as_ref() };
    for address in [c"", c"3b:00.2", c"0000:3b:00.8", c"0000:3b:00.2\n", c"\xff000:3b:00.2"] {
        let address = address.as_ptr();
        let mut device = MaybeUninit::new(ptr::dangling_mut());
        // SAFETY: the address is a C string.
        let found = call(|e| unsafe { uverbs_list_by_pci(listed, address, Some(&mut device), e) });
        assert_eq!((found.0, found.1), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT));
        assert!(found.2.ends_with("0000:3b:00.2"), "{}", found.2);
        // SAFETY: it was set.
        assert!(unsafe { device.assume_init() }.is_null());
        // SAFETY: with room for none, no pointer is used.
        let found =
            call(|e| unsafe { uverbs_list_all_by_pci(listed, address, ptr::null_mut(), 0, e) });
        assert_eq!((found.0, found.1), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT));
    }
    // SAFETY: the reference is dropped once.
    unsafe { uverbs_list_unref(list) };
}

#[test]
fn devices_of_an_address_are_borrowed_from_the_list() {
    let scene = Scene::of(|machine| {
        machine.add_pci_function(PCI, (0x15b3, 0x1017), 3);
        machine.add(DeviceSpec::new("a").beneath(PCI)).expect("added");
        DeviceSpec::new("b").beneath(PCI)
    });
    let list = make(|list, error| uverbs_registry_list(scene.registry(), list, error));
    // SAFETY: it is alive until the end of this test.
    let listed = unsafe { list.as_ref() };
    let address = c"ffffffff:ff:1f.7".as_ptr();
    for room in 0..4 {
        let untouched = ptr::dangling();
        let mut found = [untouched; 3];
        let to = found.as_mut_ptr();
        // SAFETY: the array is at least that long.
        let result = call(|e| unsafe { uverbs_list_all_by_pci(listed, address, to, room, e) });
        assert_eq!(result.0, 2, "{}", result.2);
        for (place, device) in found.into_iter().enumerate() {
            let is_filled = place < room.min(2);
            let expected = if is_filled { uverbs_list_get(listed, place) } else { untouched };
            assert_eq!(device, expected, "{room} {place}");
        }
    }
    // SAFETY: a null pointer is allowed.
    let found = call(|e| unsafe { uverbs_list_all_by_pci(listed, address, ptr::null_mut(), 1, e) });
    assert_eq!((found.0, found.1), (-libc::EINVAL, UVERBS_ERROR_ARGUMENT));
    // SAFETY: the reference is dropped once.
    unsafe { uverbs_list_unref(list) };
}

#[test]
fn arrays_have_the_callers_stride_and_room() {
    let scene = Scene::of(|_| DeviceSpec::new("rxe0").guid(0xa0).ports(2));
    for (port, index) in [(1, 7), (2, 9)] {
        scene.machine.set_netdev(scene.id, port, Some((index, "eth0"))).expect("a port");
    }
    let context = make(|context, error| uverbs_open(scene.device(), context, error));
    // SAFETY: it is alive until the end of this test.
    let open = unsafe { context.as_ref() };
    let mut bytes = [0x55_u8; 80];
    for (size, room, written) in [(24, 3, 48), (8, 2, 16), (30, 1, 30), (24, 0, 0)] {
        bytes.fill(0x55);
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer is that long.
        let count = call(|e| unsafe { uverbs_device_netdevs(scene.device(), to, size, room, e) }).0;
        assert_eq!(count, 2);
        assert!(bytes[written..].iter().all(|&byte| byte == 0x55), "{size}");
        for (place, (port, index)) in [(1, 7), (2, 9)].into_iter().enumerate() {
            let numbers: [u8; 8] =
                [u32::to_ne_bytes(port), u32::to_ne_bytes(index)].concat().try_into().expect("two");
            let is_there = place < room;
            assert_eq!(bytes[place * size..][..8] == numbers, is_there, "{size} {place}");
        }
    }
    for (size, room, written) in [(32, 2, 64), (16, 4, 32), (40, 1, 40), (32, 0, 0)] {
        bytes.fill(0x55);
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer is that long.
        let count = call(|e| unsafe { uverbs_device_ports(scene.device(), to, size, room, e) }).0;
        assert_eq!(count, 2);
        assert!(bytes[written..].iter().all(|&byte| byte == 0x55), "{size}");
        assert_eq!(bytes[..4] == 1_u32.to_ne_bytes(), room > 0);
    }
    for (size, room, written) in [(40, 2, 40), (20, 4, 20), (32, 0, 0)] {
        bytes.fill(0x55);
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer is that long.
        let count = call(|error| unsafe { uverbs_query_gids(open, to, size, room, error) }).0;
        assert_eq!(count, 1);
        assert!(bytes[written..].iter().all(|&byte| byte == 0x55), "{size}");
        assert_eq!(written > 0, bytes[8..16] == 0xa0_u64.to_be_bytes());
    }
    // SAFETY: with room for none, no pointer is used.
    let count = call(|error| unsafe { uverbs_query_gids(open, ptr::null_mut(), 32, 0, error) }).0;
    assert_eq!(count, 1);
    // SAFETY: as above.
    let count = call(|error| unsafe { uverbs_query_pkeys(open, 1, ptr::null_mut(), 0, error) }).0;
    assert_eq!(count, 1);
    // SAFETY: the reference is dropped once.
    unsafe { uverbs_context_unref(context) };
}
