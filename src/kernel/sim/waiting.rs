//! The calls of a watch: uevent sockets, timers, epoll descriptors and the clock.

use std::hash::Hash as _;
use std::sync::Arc;
use std::time::Duration;

use super::super::uevent::{KERNEL_GROUP, Packet};
use super::super::{Errno, Handle, Sys};
use super::hook::{CallKind, Verdict};
use super::mixer::Mixer;
use super::world::FileState;
use super::{Machine, Returned, SimHandle, files};

impl Returned for Packet {
    fn hash_into(&self, hash: &mut Mixer) {
        self.hash(hash);
    }
}

impl Machine {
    pub(crate) fn uevent_socket(&self) -> Sys<Handle> {
        let detail = |_: &super::World| "NETLINK_KOBJECT_UEVENT".into();
        let file = self.enter(CallKind::UeventSocket, detail, |world, _| {
            match world.settings.deny_uevents {
                Some(errno) => Err(super::world::errno(errno)),
                None => Ok(world.uevent_socket()),
            }
        })?;
        Ok(Handle::Sim(self.handle(file, None)))
    }

    pub(crate) fn pass_credentials(&self, socket: &SimHandle) -> Sys<()> {
        self.on_file(CallKind::Setsockopt, socket, |world, _, file| world.pass_credentials(file))
    }

    pub(crate) fn set_receive_buffer(
        &self,
        socket: &SimHandle,
        _bytes: usize,
        _force: bool,
    ) -> Sys<()> {
        self.on_file(CallKind::Setsockopt, socket, |_, _, _| Ok(()))
    }

    pub(crate) fn subscribe(&self, socket: &SimHandle) -> Sys<()> {
        self.on_file(CallKind::Bind, socket, |world, _, file| world.subscribe(file))
    }

    pub(crate) fn recv_uevent(&self, socket: &SimHandle, buffer: &mut [u8]) -> Sys<Packet> {
        self.on_file(CallKind::RecvUevent, socket, |world, verdict, file| {
            let packet = match verdict {
                Verdict::Forge(bytes) => {
                    let len = files::copy(&bytes, buffer);
                    let (port, groups, sender) = (0, KERNEL_GROUP, Some((4321, 65_534)));
                    Packet { len, is_cut: len < bytes.len(), port, groups, sender }
                }
                verdict => {
                    if verdict == Verdict::Lose {
                        world.recv_uevent(file, &mut [])?;
                    }
                    let room = match verdict {
                        Verdict::Truncate(len) => len.min(buffer.len()),
                        _ => buffer.len(),
                    };
                    let mut packet = world.recv_uevent(file, &mut buffer[..room])?;
                    packet.len = verdict.of_answer(buffer, packet.len).min(buffer.len());
                    packet
                }
            };
            buffer[..packet.len].hash(&mut world.returned);
            Ok(packet)
        })
    }

    pub(crate) fn timer(&self) -> Sys<Handle> {
        let detail = |_: &super::World| "CLOCK_MONOTONIC".into();
        let file = self.enter(CallKind::Timer, detail, |world, _| Ok(world.timer()))?;
        Ok(Handle::Sim(self.handle(file, None)))
    }

    pub(crate) fn set_timer(&self, timer: &SimHandle, after: Duration) -> Sys<()> {
        self.on_file(CallKind::SetTimer, timer, |world, _, file| world.set_timer(file, after))
    }

    pub(crate) fn epoll(&self) -> Sys<Handle> {
        let (file, stand_in) =
            self.enter(CallKind::Epoll, |_| String::new(), |world, _| world.epoll())?;
        Ok(Handle::Sim(self.handle(file, stand_in)))
    }

    pub(crate) fn epoll_add(&self, epoll: &SimHandle, member: &SimHandle) -> Sys<()> {
        if !Arc::ptr_eq(&self.shared, &member.machine.shared) {
            return Err(Errno::BADF);
        }
        let member = member.file;
        self.on_file(CallKind::EpollAdd, epoll, |world, _, file| world.epoll_add(file, member))
    }

    pub(crate) fn epoll_remove(&self, epoll: &SimHandle, member: &SimHandle) -> Sys<()> {
        let member = member.file;
        self.on_file(CallKind::EpollAdd, epoll, |world, _, file| world.epoll_remove(file, member))
    }

    pub(crate) fn poll(&self, fd: &SimHandle, timeout: Option<Duration>) -> Sys<bool> {
        self.on_file(CallKind::Poll, fd, |world, _, file| match &world.file(file)?.state {
            FileState::Epoll(members) => {
                let members = members.clone();
                Ok(world.wait(&members, timeout))
            }
            _ => world.poll(file),
        })
    }

    pub(crate) fn check_access(&self, fd: &SimHandle) -> Sys<()> {
        self.on_file(CallKind::Access, fd, |world, _, file| {
            match world.tree[world.file(file)?.node].denied {
                true => Err(Errno::ACCESS),
                false => Ok(()),
            }
        })
    }

    pub(crate) fn now(&self) -> Duration {
        self.with(|world| world.clock())
    }
}
