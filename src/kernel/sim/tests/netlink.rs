//! RDMA netlink.

use super::super::super::netlink::{Messages, NLMSG_DONE, NLMSG_ERROR, Request};
use super::super::super::nldev::{
    Chardev, Command, DeviceInfo, Resource, ResourceEntry, attr, parse_resources,
};
use super::*;

impl Host {
    pub(super) fn request(
        &self,
        socket: &Handle,
        command: Command,
        dump: bool,
        index: Option<u32>,
    ) {
        self.request_one(socket, command, dump, index, None);
    }

    /// Requests one resource, by the attribute that numbers it.
    fn request_one(
        &self,
        socket: &Handle,
        command: Command,
        dump: bool,
        index: Option<u32>,
        number: Option<(u16, u32)>,
    ) {
        let mut request = Request::new(command.message_type(), dump, 7);
        if let Some(index) = index {
            request = request.attr(attr::DEV_INDEX, &index.to_ne_bytes());
        }
        if let Some((kind, number)) = number {
            request = request.attr(kind, &number.to_ne_bytes());
        }
        if command == Command::GetChardev {
            request = request.attr(attr::CHARDEV_TYPE, b"uverbs\0");
        }
        let request = request.finish();
        assert_eq!(self.kernel.send(socket, request), Ok(request.len()));
    }

    pub(super) fn next(&self, socket: &Handle) -> Sys<Vec<u8>> {
        self.next_into(socket, 4096)
    }

    /// The next datagram, into a buffer of that length.
    fn next_into(&self, socket: &Handle, len: usize) -> Sys<Vec<u8>> {
        let mut buffer = vec![0; len];
        let datagram = self.kernel.recv(socket, &mut buffer)?;
        assert!(datagram.from_kernel);
        Ok(buffer[..datagram.len].to_vec())
    }

    /// The answer to a request by index, or the errno.
    pub(super) fn answer(&self, command: Command, index: u32) -> Result<Vec<u8>, Errno> {
        self.answer_of(command, index, None)
    }

    pub(super) fn answer_of(
        &self,
        command: Command,
        index: u32,
        number: Option<(u16, u32)>,
    ) -> Result<Vec<u8>, Errno> {
        let socket = self.kernel.rdma_socket().unwrap();
        self.request_one(&socket, command, false, Some(index), number);
        let bytes = self.next(&socket).unwrap();
        let message = Messages(&bytes).next().unwrap().unwrap();
        assert_eq!(self.next(&socket), Err(Errno::AGAIN));
        if message.kind == NLMSG_ERROR { Err(message.errno().unwrap().unwrap()) } else { Ok(bytes) }
    }

    pub(super) fn contexts(&self, index: u32) -> (Vec<ResourceEntry>, Option<Errno>) {
        let socket = self.kernel.rdma_socket().unwrap();
        self.request(&socket, Command::ResCtxGet, true, Some(index));
        let mut all = Vec::new();
        loop {
            let bytes = self.next(&socket).unwrap();
            let message = Messages(&bytes).next().unwrap().unwrap();
            if message.kind == NLMSG_DONE {
                assert_eq!(message.body.len(), 4);
                return (all, message.errno().unwrap());
            }
            parse_resources(&message, Resource::Context, index, &mut |entry| all.push(entry))
                .unwrap();
        }
    }
}

#[test]
fn a_device_by_index() {
    let host = Host::new();
    let id = host.machine.add(DeviceSpec::new("a").guid(0x1234).driver(1, 1)).unwrap();
    let hns = host.machine.add(DeviceSpec::new("b").driver(12, 1)).unwrap();
    let bytes = host.answer(Command::Get, 0).unwrap();
    let info = DeviceInfo::parse(&Messages(&bytes).next().unwrap().unwrap()).unwrap();
    assert_eq!((&*info.name, info.node_guid, info.node_type), (&b"a"[..], 0x1234, 1));
    let chardev = |index| {
        let bytes = host.answer(Command::GetChardev, index)?;
        Ok(Chardev::parse(&Messages(&bytes).next().unwrap().unwrap()).unwrap())
    };
    assert_eq!(
        chardev(0),
        Ok(Chardev { dev: (231, 192), name: (*b"uverbs0").into(), driver_id: Some(1) })
    );
    let bound = chardev(host.machine.index_of(hns));
    assert_eq!(bound, Ok(Chardev { dev: (231, 193), name: (*b"uverbs1").into(), driver_id: None }));
    assert_eq!(chardev(5), Err(Errno::INVAL));
    host.machine.set_netns_visible(id, false);
    assert_eq!(chardev(0), Err(Errno::INVAL));
    host.machine.set_netns_visible(id, true);
    host.machine.unload_ib_uverbs().unwrap();
    assert_eq!(chardev(0), Err(Errno::OPNOTSUPP));
}

#[test]
fn a_dump_pages_by_position() {
    let host = Host::new();
    let ids: Vec<_> = (0..4).map(|n| host.add(&format!("d{n}"))).collect();
    let socket = host.kernel.rdma_socket().unwrap();
    host.request(&socket, Command::Get, true, None);
    let next = || {
        let bytes = host.next(&socket).unwrap();
        let message = Messages(&bytes).next().unwrap().unwrap();
        assert_eq!(message.seq, 7);
        (message.kind != NLMSG_DONE).then(|| DeviceInfo::parse(&message).unwrap().index)
    };
    // The first two pages are made by now. One of their devices goes, and the third device is never shown.
    assert_eq!(next(), Some(0));
    host.machine.remove(ids[0]);
    assert_eq!(next(), Some(1));
    assert_eq!(next(), Some(3));
    assert_eq!(next(), None);
    assert_eq!(host.next(&socket), Err(Errno::AGAIN));
}

#[test]
fn one_dump_at_a_time() {
    let host = Host::new();
    host.add("a");
    let socket = host.kernel.rdma_socket().unwrap();
    host.request(&socket, Command::Get, true, None);
    host.request(&socket, Command::Get, true, None);
    let device = host.next(&socket).unwrap();
    assert!(DeviceInfo::parse(&Messages(&device).next().unwrap().unwrap()).is_ok());
    let busy = host.next(&socket).unwrap();
    let busy = Messages(&busy).next().unwrap().unwrap();
    assert_eq!(busy.errno(), Ok(Some(Errno::BUSY)));
}

#[test]
fn a_context_names_its_thread() {
    let host = Host::new();
    let (a, b) = (host.add("a"), host.add("b"));
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    let thread = host.kernel.gettid();
    let ours = ResourceEntry { number: 0, context: Some(0), thread: Some(thread) };
    assert_eq!(host.contexts(0), (vec![ours], None));
    assert_eq!(host.contexts(1), (vec![], None));
    let foreign = host.machine.foreign_context(a).unwrap();
    assert_ne!(host.contexts(0).0[1].thread, Some(thread));
    host.machine.close_foreign(a, foreign);
    host.machine.forget_thread(thread);
    assert_eq!(
        host.contexts(0),
        (vec![ResourceEntry { number: 0, context: Some(0), thread: None }], None)
    );
    // Numbers continue: they are not reused at once.
    drop(node);
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    assert_eq!(host.machine.ctxn_of(node.as_fd()), Some(2));
    assert!(host.machine.contexts_of(b).is_empty());
}

/// The numbers and the length of each page of contexts, received into buffers of that length. `between` runs
/// between the request and the first of them.
fn pages(
    host: &Host,
    socket: &Handle,
    len: usize,
    between: impl FnOnce(),
) -> Vec<(Vec<u32>, usize)> {
    host.request(socket, Command::ResCtxGet, true, Some(0));
    between();
    let mut pages = Vec::new();
    loop {
        let bytes = host.next_into(socket, len).unwrap();
        let mut messages = Messages(&bytes);
        let message = messages.next().unwrap().unwrap();
        assert!(messages.next().is_none(), "two messages in one datagram");
        if message.kind == NLMSG_DONE {
            return pages;
        }
        let mut numbers = Vec::new();
        parse_resources(&message, Resource::Context, 0, &mut |entry| numbers.push(entry.number))
            .unwrap();
        pages.push((numbers, bytes.len()));
    }
}

#[test]
fn pages_are_as_long_as_the_longest_buffer_seen() {
    let host = Host::new();
    let id = host.add("rx0");
    let theirs: Vec<u32> = (0..1701).map(|_| host.machine.foreign_context(id).unwrap()).collect();
    let socket = host.kernel.rdma_socket().unwrap();
    let counts = |len| -> Vec<_> {
        pages(&host, &socket, len, || {}).iter().map(|page| (page.0.len(), page.1)).collect()
    };
    // The lengths on real kernels, with a name of three letters. The first page is made before a buffer is seen.
    assert_eq!(counts(65_536)[..2], [(187, 3_776), (1_514, 30_316)]);
    assert_eq!(counts(65_536), [(1_620, 32_436), (81, 1_656)]);
    host.machine.set_short_pages(true);
    assert_eq!(counts(65_536)[0], (187, 3_776));
    host.machine.set_short_pages(false);
    // One hundred close between the request and the arrival of the first page. The last context, which existed
    // throughout, is in no page.
    let close = || theirs[..100].iter().for_each(|ctxn| host.machine.close_foreign(id, *ctxn));
    let cut = pages(&host, &socket, 65_536, close);
    assert_eq!(cut.len(), 1);
    assert_eq!((cut[0].0.len(), cut[0].1), (1_620, 32_436));
    assert!(!cut[0].0.contains(&theirs[1700]));
    assert_eq!(host.machine.contexts_of(id).len(), 1_601);
}

#[test]
fn entries_are_as_long_as_the_wanted_pages_take() {
    for (a_page, long) in [(1, 8), (2, 17), (3, 26), (7, 60), (187, 1_620)] {
        let host = Host::new();
        let id = host.add("rx0");
        host.machine.set_contexts_a_page(a_page);
        for _ in 0..1_630 {
            host.machine.foreign_context(id).unwrap();
        }
        let socket = host.kernel.rdma_socket().unwrap();
        let first = |len| pages(&host, &socket, len, || {})[0].clone();
        let (short, len) = first(32_768);
        assert_eq!(short.len(), a_page);
        assert!(len > 3_300, "{len}: a shorter page counts as complete");
        assert_eq!(first(32_768).0.len(), long);
    }
}

#[test]
fn a_context_dump_fails_at_its_end() {
    let host = Host::new();
    let id = host.add("a");
    assert_eq!(host.contexts(9), (vec![], Some(Errno::INVAL)));
    host.machine.set_contexts_a_page(1);
    host.machine.set_short_pages(true);
    for _ in 0..3 {
        host.machine.foreign_context(id).unwrap();
    }
    assert_eq!(host.contexts(0).0.len(), 3);
    // A context that is closed behind the dump's position hides the next one.
    let socket = host.kernel.rdma_socket().unwrap();
    let seen = pages(&host, &socket, 4096, || host.machine.close_foreign(id, 0));
    let seen: Vec<u32> = seen.into_iter().flat_map(|page| page.0).collect();
    assert_eq!(seen, [0, 2]);
    host.machine.set_no_res_ctx(true);
    assert_eq!(host.answer(Command::ResCtxGet, 0), Err(Errno::INVAL));
    assert!(host.answer(Command::Get, 0).is_ok());
}

#[test]
fn a_blocked_removal_is_found_by_index_alone() {
    let host = Host::new();
    let id = host.add_stubborn("a");
    let node = host.node(0).unwrap();
    host.get_context(&node).unwrap();
    host.machine.remove(id);
    assert!(host.answer(Command::Get, 0).is_ok());
    assert_eq!(host.answer(Command::GetChardev, 0), Err(Errno::OPNOTSUPP));
    assert_eq!(host.contexts(0).0.len(), 1);
    let socket = host.kernel.rdma_socket().unwrap();
    host.request(&socket, Command::Get, true, None);
    let done = host.next(&socket).unwrap();
    assert_eq!(Messages(&done).next().unwrap().unwrap().kind, NLMSG_DONE);
    host.machine.set_hides_unlisted(true);
    assert_eq!(host.answer(Command::Get, 0), Err(Errno::INVAL));
    drop(node);
    host.machine.set_hides_unlisted(false);
    assert_eq!(host.answer(Command::Get, 0), Err(Errno::INVAL));
}

#[test]
fn datagrams_are_cut_lost_and_forged() {
    let host = Host::new();
    host.add("a");
    let socket = host.kernel.rdma_socket().unwrap();
    let whole = host.answer(Command::Get, 0).unwrap().len();
    host.request(&socket, Command::Get, false, Some(0));
    let mut short = [0; 20];
    assert_eq!(host.kernel.recv(&socket, &mut short).unwrap().len, whole);
    host.request(&socket, Command::Get, false, Some(0));
    let mut verdicts = vec![Verdict::Lose, Verdict::Forge(vec![1, 2, 3])];
    host.machine.on_call(move |_, _| verdicts.pop().unwrap_or(Verdict::Continue));
    let mut buffer = [0; 64];
    let forged = host.kernel.recv(&socket, &mut buffer).unwrap();
    assert!(!forged.from_kernel);
    assert_eq!(&buffer[..forged.len], [1, 2, 3]);
    assert_eq!(host.kernel.recv(&socket, &mut buffer).map(drop), Err(Errno::AGAIN));
    host.machine.deny_netlink(Some(13));
    assert_eq!(host.kernel.rdma_socket().map(drop), Err(Errno::ACCESS));
}
