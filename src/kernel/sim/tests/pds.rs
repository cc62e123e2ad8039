//! Protection domains: on descriptors, and in netlink's lists.

use super::super::super::netlink::{Attrs, Messages, NLMSG_DONE};
use super::super::super::nldev::{Command, attr};
use super::*;

const ALLOC_PD: u64 = 3;
const DEALLOC_PD: u64 = 4;

/// PDN, CTXN and thread of a PD.
type Listed = (u32, Option<u32>, Option<u32>);

fn listed(attrs: Attrs<'_>) -> Listed {
    let (mut pdn, mut ctxn, mut thread) = (None, None, None);
    for attribute in attrs.map(Result::unwrap) {
        match attribute.kind {
            attr::RES_PDN => pdn = Some(attribute.u32().unwrap()),
            attr::RES_CTXN => ctxn = Some(attribute.u32().unwrap()),
            attr::RES_PID => thread = Some(attribute.u32().unwrap()),
            _ => {}
        }
    }
    (pdn.unwrap(), ctxn, thread)
}

impl Host {
    /// ALLOC_PD: the handle, or the errno with what was written nevertheless.
    fn alloc_pd(&self, fd: &impl AsFd) -> Result<u32, (Errno, u32)> {
        let mut answer = [0xff; 4];
        let mut attrs = [
            Attr { id: 0, data: AttrData::In(&[0; 8]) },
            Attr { id: 1, data: AttrData::Out { buffer: &mut answer, len: 4 } },
            Attr { id: 2, data: AttrData::Const(ALLOC_PD) },
        ];
        let mut call = VerbsCall { object: 0, method: 0, driver_id: RXE, attrs: &mut attrs };
        let done = self.kernel.verbs_ioctl(fd.as_fd(), &mut call);
        let handle = u32::from_ne_bytes(answer);
        done.map(|()| handle).map_err(|errno| (errno, handle))
    }

    fn dealloc_pd(&self, fd: &impl AsFd, handle: u32) -> Sys<()> {
        let handle = handle.to_ne_bytes();
        let mut attrs = [
            Attr { id: 0, data: AttrData::In(&handle) },
            Attr { id: 2, data: AttrData::Const(DEALLOC_PD) },
        ];
        let mut call = VerbsCall { object: 0, method: 0, driver_id: RXE, attrs: &mut attrs };
        self.kernel.verbs_ioctl(fd.as_fd(), &mut call)
    }

    /// INFO_HANDLES of PDs.
    pub(super) fn pd_handles(&self, fd: &impl AsFd) -> Sys<Vec<u32>> {
        let (mut total, mut list) = ([0; 4], [0; 64]);
        let mut attrs = [
            Attr { id: 0, data: AttrData::Const(1) },
            Attr { id: 1, data: AttrData::Out { buffer: &mut total, len: 4 } },
            Attr { id: 2, data: AttrData::Out { buffer: &mut list, len: 64 } },
        ];
        let mut call = VerbsCall { object: 0, method: 1, driver_id: RXE, attrs: &mut attrs };
        self.kernel.verbs_ioctl(fd.as_fd(), &mut call)?;
        let words = list.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        Ok(words.take(u32::from_ne_bytes(total) as usize).collect())
    }

    fn pds(&self, index: u32) -> (Vec<Listed>, Option<Errno>) {
        let socket = self.kernel.rdma_socket().unwrap();
        self.request(&socket, Command::ResPdGet, true, Some(index));
        let mut all = Vec::new();
        loop {
            let bytes = self.next(&socket).unwrap();
            let message = Messages(&bytes).next().unwrap().unwrap();
            if message.kind == NLMSG_DONE {
                return (all, message.errno().unwrap());
            }
            for table in message.attrs().map(Result::unwrap) {
                if table.kind == attr::RES_PD {
                    let entries = table.nested().map(Result::unwrap);
                    all.extend(entries.map(|entry| listed(entry.nested())));
                }
            }
        }
    }

    fn pd(&self, index: u32, pdn: u32) -> Result<Listed, Errno> {
        let bytes = self.answer_of(Command::ResPdGet, index, Some((attr::RES_PDN, pdn)))?;
        Ok(listed(Messages(&bytes).next().unwrap().unwrap().attrs()))
    }
}

#[test]
fn a_pd_is_listed_under_the_device_of_its_descriptor() {
    let host = Host::new();
    let (a, b) = (host.add("a"), host.add("b"));
    let node = host.node(1).unwrap();
    assert_eq!(host.alloc_pd(&node), Err((Errno::INVAL, u32::MAX)));
    assert_eq!(host.dealloc_pd(&node, 0), Err(Errno::NOENT));
    host.machine.foreign_context(b).unwrap();
    host.get_context(&node).unwrap();
    assert_eq!((host.alloc_pd(&node), host.alloc_pd(&node)), (Ok(0), Ok(1)));
    let thread = host.kernel.gettid();
    let (first, second) = ((0, Some(1), Some(thread)), (1, Some(1), Some(thread)));
    let index = host.machine.index_of(b);
    assert_eq!(host.pds(index), (vec![first, second], None));
    assert_eq!(host.pd(index, 1), Ok(second));
    assert_eq!(host.pd(index, 2), Err(Errno::NOENT));
    assert_eq!(host.pds(host.machine.index_of(a)), (vec![], None));
    assert_eq!(host.pd(9, 0), Err(Errno::INVAL));
    assert_eq!(host.answer(Command::ResPdGet, index), Err(Errno::INVAL));
    assert_eq!(host.pd_handles(&node), Ok(vec![0, 1]));
    // The lowest free handle is reused, but numbers continue.
    assert_eq!(host.dealloc_pd(&node, 0), Ok(()));
    assert_eq!(host.dealloc_pd(&node, 0), Err(Errno::NOENT));
    assert_eq!(host.pd(index, 0), Err(Errno::NOENT));
    assert_eq!(host.alloc_pd(&node), Ok(0));
    assert_eq!(host.machine.pds_of(b), [1, 2]);
    assert_eq!(host.machine.pds_by(b, thread), [1, 2]);
    host.machine.forget_thread(thread);
    assert_eq!(host.pd(index, 2), Ok((2, Some(1), None)));
    drop(node);
    assert!(host.machine.pds_of(b).is_empty());
}

#[test]
fn a_context_is_found_by_its_number() {
    let host = Host::new();
    let id = host.add("a");
    let theirs = host.machine.foreign_context(id).unwrap();
    let bytes = host.answer_of(Command::ResCtxGet, 0, Some((attr::RES_CTXN, theirs))).unwrap();
    let message = Messages(&bytes).next().unwrap().unwrap();
    let numbers: Vec<_> = message.attrs().map(|attribute| attribute.unwrap().kind).collect();
    assert_eq!(numbers, [attr::DEV_INDEX, attr::DEV_NAME, attr::RES_CTXN, attr::RES_PID]);
    let missing = host.answer_of(Command::ResCtxGet, 0, Some((attr::RES_CTXN, 7)));
    assert_eq!(missing, Err(Errno::NOENT));
}

#[test]
fn pd_numbers_wrap_around() {
    let host = Host::new();
    let id = host.add("a");
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    let kernel = host.machine.kernel_pd(id).unwrap();
    host.machine.set_next_pdn(id, u32::MAX);
    assert_eq!((host.alloc_pd(&node), host.alloc_pd(&node)), (Ok(0), Ok(1)));
    assert_eq!(host.machine.pds_of(id), [kernel, 1, u32::MAX]);
    assert_eq!(host.pds(0).0[0], (kernel, None, None));
    assert_eq!(host.machine.alloc_pd(node.as_fd()), Ok(2));
    assert_eq!(host.machine.alloc_pd(host.dev.as_fd()), Err(25));
}

#[test]
fn the_kernel_checks_the_size_of_requests() {
    let host = Host::new();
    host.add("a");
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    let invoke = |command, request: &[u8], room: usize| {
        let mut answer = [0; 16];
        let mut attrs = [
            Attr { id: 0, data: AttrData::In(request) },
            Attr { id: 1, data: AttrData::Out { buffer: &mut answer, len: room as u16 } },
            Attr { id: 2, data: AttrData::Const(command) },
        ];
        let mut call = VerbsCall { object: 0, method: 0, driver_id: RXE, attrs: &mut attrs };
        host.kernel.verbs_ioctl(node.as_fd(), &mut call).map(|()| answer)
    };
    assert_eq!(invoke(ALLOC_PD, &[0; 7], 4), Err(Errno::NOSPC));
    assert_eq!(invoke(ALLOC_PD, &[0; 8], 3), Err(Errno::NOSPC));
    assert_eq!(invoke(ALLOC_PD, &[1; 9], 4), Err(Errno::OPNOTSUPP));
    assert_eq!(invoke(DEALLOC_PD, &[0; 3], 0), Err(Errno::NOSPC));
    assert_eq!(invoke(ALLOC_PD, &[0; 9], 16), Ok([0; 16]));
}

#[test]
fn pds_go_with_their_context() {
    let host = Host::new();
    let id = host.add("a");
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    host.alloc_pd(&node).unwrap();
    let kernel = host.machine.kernel_pd(id).unwrap();
    while host.machine.remove_step(id) != Some(Stage::Disassociated) {
        assert_eq!(host.pds(0).0.len(), 2);
    }
    // Netlink still answers for the index.
    assert_eq!(host.pds(0), (vec![(kernel, None, None)], None));
    // Freeing needs no device, so its success does not show that the device is there.
    assert_eq!(host.dealloc_pd(&node, 0), Ok(()));
    assert_eq!(host.alloc_pd(&node), Err((Errno::IO, u32::MAX)));
    assert_eq!(host.pd_handles(&node), Ok(vec![]));
}

#[test]
fn commands_on_pds_fail_as_configured() {
    let host = Host::new();
    let id = host.add("a");
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    host.machine.fail_alloc_pd(28, 1);
    assert_eq!(host.alloc_pd(&node), Err((Errno::NOSPC, u32::MAX)));
    host.machine.fail_after_alloc_pd(14, 1);
    assert_eq!(host.alloc_pd(&node), Err((Errno::FAULT, 0)));
    assert_eq!(host.machine.pds_of(id), [0]);
    host.machine.fail_dealloc_pd(16, 1);
    assert_eq!(host.dealloc_pd(&node, 0), Err(Errno::BUSY));
    assert_eq!(host.pds(0).0.len(), 1);
    assert_eq!(host.dealloc_pd(&node, 0), Ok(()));
    host.machine.fail_alloc_pd(22, u32::MAX);
    for _ in 0..3 {
        assert_eq!(host.alloc_pd(&node), Err((Errno::INVAL, u32::MAX)));
    }
}

#[test]
fn an_untracked_object_is_not_listed() {
    let host = Host::new();
    let id = host.add("a");
    let theirs = host.machine.foreign_context(id).unwrap();
    let node = host.node(0).unwrap();
    host.machine.untrack_contexts(1);
    host.get_context(&node).unwrap();
    assert_eq!(host.machine.contexts_of(id), [theirs]);
    host.machine.untrack_pds(1);
    assert_eq!(host.alloc_pd(&node), Ok(0));
    assert_eq!(host.pds(0), (vec![], None));
    // A tracked PD of an untracked context has the number 0 for its context, whichever context has that number.
    host.alloc_pd(&node).unwrap();
    assert_eq!(host.pds(0).0, [(0, Some(0), Some(host.kernel.gettid()))]);
    assert_eq!(host.machine.pd_handles_of(node.as_fd()), [0, 1]);
    drop(node);
    assert_eq!(host.machine.contexts_of(id), [theirs]);
}

#[test]
fn a_pd_is_absent_for_a_moment() {
    let host = Host::new();
    let id = host.add("a");
    let pdn = host.machine.foreign_pd(id).unwrap();
    let other = host.machine.foreign_pd(id).unwrap();
    host.machine.hide_pd(id, pdn, 2);
    assert_eq!(host.pd(0, pdn), Err(Errno::NOENT));
    assert_eq!(host.pds(0).0[0].0, other);
    assert_eq!(host.pds(0).0.len(), 2);
    assert!(host.pd(0, pdn).is_ok());
}

#[test]
fn others_have_pds_by_any_thread() {
    let host = Host::new();
    let id = host.add_stubborn("a");
    let thread = host.machine.this_thread();
    assert_eq!(thread, host.kernel.gettid());
    let ctxn = host.machine.context_by(id, thread).unwrap();
    let pdn = host.machine.pd_by(id, ctxn, thread).unwrap();
    assert_eq!(host.pds(0).0, [(pdn, Some(ctxn), Some(thread))]);
    assert_eq!(host.machine.contexts_by(id, thread), [ctxn]);
    host.machine.dealloc_foreign_pd(id, pdn);
    assert_eq!(host.pds(0).0, []);
    host.machine.pd_by(id, ctxn, thread + 1).unwrap();
    host.machine.remove(id);
    assert!(!host.machine.is_gone(id));
    host.machine.close_foreign(id, ctxn);
    assert!(host.machine.is_gone(id));
}

#[test]
fn an_old_kernel_lists_no_pds() {
    let host = Host::new();
    let id = host.add("a");
    host.machine.foreign_pd(id).unwrap();
    host.machine.set_no_res_pd(true);
    assert_eq!(host.pd(0, 0), Err(Errno::INVAL));
    assert_eq!(host.contexts(0).0.len(), 1);
}
