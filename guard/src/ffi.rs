//! libibverbs' device handle (`struct ibv_device`, `infiniband/verbs.h`). Its layout is public and has not changed since
//! libibverbs 1.1.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

/// `IBV_SYSFS_NAME_MAX`
const NAME_MAX: usize = 64;
/// `IBV_SYSFS_PATH_MAX`
const PATH_MAX: usize = 256;

/// `struct ibv_device`
#[repr(C)]
pub(crate) struct IbvDevice {
    ops: [*mut c_void; 2],
    node_type: c_int,
    transport_type: c_int,
    name: [c_char; NAME_MAX],
    dev_name: [c_char; NAME_MAX],
    dev_path: [c_char; PATH_MAX],
    ibdev_path: [c_char; PATH_MAX],
}

/// A handle that libibverbs keeps alive.
#[derive(Clone, Copy)]
pub(crate) struct Handle(*mut IbvDevice);

impl Handle {
    /// # Safety
    /// libibverbs made the handle, and it lives as long as this is used.
    pub(crate) unsafe fn new(device: *mut IbvDevice) -> Self {
        Self(device)
    }

    pub(crate) fn as_ptr(self) -> *mut IbvDevice {
        self.0
    }

    /// The device's name.
    pub(crate) fn name(self) -> Vec<u8> {
        self.text(offset_of!(IbvDevice, name), NAME_MAX)
    }

    /// The name of its node.
    pub(crate) fn dev_name(self) -> Vec<u8> {
        self.text(offset_of!(IbvDevice, dev_name), NAME_MAX)
    }

    /// Sets the device's name, and its directory in sysfs. A name that does not fit is not set.
    pub(crate) fn set_name(self, name: &[u8]) {
        let mut path = self.text(offset_of!(IbvDevice, ibdev_path), PATH_MAX);
        path.truncate(path.iter().rposition(|byte| *byte == b'/').map_or(0, |end| end + 1));
        path.extend_from_slice(name);
        if name.len() < NAME_MAX && path.len() < PATH_MAX {
            self.set_text(offset_of!(IbvDevice, name), NAME_MAX, name);
            self.set_text(offset_of!(IbvDevice, ibdev_path), PATH_MAX, &path);
        }
    }

    /// The text in a field, which ends with NUL or with the field. Another thread may write it meanwhile: each byte is
    /// read once.
    fn text(self, offset: usize, len: usize) -> Vec<u8> {
        let field = self.0.wrapping_byte_add(offset).cast::<u8>();
        // SAFETY: the handle is alive (`new`), and all of these are bytes of one of its fields.
        let bytes = (0..len).map(|at| unsafe { field.wrapping_add(at).read_volatile() });
        bytes.take_while(|byte| *byte != 0).collect()
    }

    /// Fills a field with text and NUL. It begins at the end, so that a reader in another thread finds an end at each
    /// moment. libibverbs gives these fields no lock.
    fn set_text(self, offset: usize, len: usize, text: &[u8]) {
        let field = self.0.wrapping_byte_add(offset).cast::<u8>();
        for at in (0..len).rev() {
            let byte = text.get(at).copied().unwrap_or(0);
            // SAFETY: as above.
            unsafe { field.wrapping_add(at).write_volatile(byte) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libibverbs fills it in.
    fn device(name: &[u8], path: &[u8]) -> Box<IbvDevice> {
        // SAFETY: all zeroes is a valid value.
        let mut device: Box<IbvDevice> = Box::new(unsafe { std::mem::zeroed() });
        copy(&mut device.name, name);
        copy(&mut device.dev_name, b"uverbs3");
        copy(&mut device.dev_path, b"/sys/class/infiniband_verbs/uverbs3");
        copy(&mut device.ibdev_path, path);
        device
    }

    fn copy(field: &mut [c_char], text: &[u8]) {
        for (to, from) in field.iter_mut().zip(text) {
            *to = from.cast_signed();
        }
    }

    fn text(field: &[c_char]) -> Vec<u8> {
        field.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect()
    }

    fn handle(device: &mut IbvDevice) -> Handle {
        // SAFETY: the device lives as long as the handle is used.
        unsafe { Handle::new(device) }
    }

    #[test]
    fn names_are_read() {
        let mut device = device(b"rxe0", b"/sys/class/infiniband/rxe0");
        assert_eq!(handle(&mut device).name(), b"rxe0");
        assert_eq!(handle(&mut device).dev_name(), b"uverbs3");
        let address = &raw mut *device;
        assert_eq!(handle(&mut device).as_ptr(), address);
        let longest = [b'x'; NAME_MAX];
        copy(&mut device.name, &longest);
        assert_eq!(handle(&mut device).name(), longest, "a field without an end");
    }

    #[test]
    fn a_name_is_set_with_its_path_and_nothing_else() {
        for name in [b"mlx5_bond_0".as_slice(), b"a", &[b'n'; NAME_MAX - 1]] {
            let mut device = device(b"rxe0", b"/sys/class/infiniband/rxe0");
            handle(&mut device).set_name(name);
            assert_eq!(text(&device.name), name);
            assert_eq!(text(&device.ibdev_path), [b"/sys/class/infiniband/", name].concat());
            assert!(device.name[name.len()..].iter().all(|byte| *byte == 0), "the rest is left");
            assert_eq!(text(&device.dev_name), b"uverbs3");
            assert_eq!(text(&device.dev_path), b"/sys/class/infiniband_verbs/uverbs3");
        }
    }

    #[test]
    fn a_name_that_does_not_fit_is_not_set() {
        let long = [b"/".as_slice(), &[b'p'; PATH_MAX - 12], b"/rxe0"].concat();
        for (name, path) in [
            ([b'n'; NAME_MAX].as_slice(), b"/sys/class/infiniband/rxe0".as_slice()),
            (b"rather-long", &long),
            // One byte too long: the end needs one, too.
            (b"longer-by1", &long),
        ] {
            let mut device = device(b"rxe0", path);
            handle(&mut device).set_name(name);
            assert_eq!(
                (text(&device.name), text(&device.ibdev_path)),
                (b"rxe0".to_vec(), path.to_vec())
            );
        }
        let mut device = device(b"rxe0", &long);
        handle(&mut device).set_name(b"just-fits");
        assert_eq!(text(&device.name), b"just-fits");
        assert_eq!(text(&device.ibdev_path).len(), PATH_MAX - 1);
    }

    #[test]
    fn a_path_without_a_directory_becomes_the_name() {
        let mut device = device(b"rxe0", b"rxe0");
        handle(&mut device).set_name(b"rxe1");
        assert_eq!(text(&device.ibdev_path), b"rxe1");
    }
}
