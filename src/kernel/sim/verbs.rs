//! The verbs ioctl ABI on a cmd fd.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::super::{AttrData, Errno, Sys, VerbsCall};
use super::devices::IbDevice;
use super::files::copy;
use super::ports::Port;
use super::resources::Pds;
use super::spec::DeviceId;
use super::tree::SOCKETS;
use super::world::{FileId, FileState, World, pair};

const INVOKE_WRITE: u16 = 0;
const INFO_HANDLES: u16 = 1;
const QUERY_PORT: u16 = 2;
const GET_CONTEXT: u16 = 3;
const QUERY_GID_TABLE: u16 = 5;
const UHW_IN: u16 = 0x1000;
const UHW_OUT: u16 = 0x1001;

/// `UVERBS_OBJECT_PD`.
const PD_OBJECT: u64 = 1;

/// `IB_USER_VERBS_CMD_*`, and the lengths of QUERY_DEVICE's request and response.
const QUERY_DEVICE: u64 = 1;
pub(super) const ALLOC_PD: u64 = 3;
const DEALLOC_PD: u64 = 4;
const EX_QUERY_DEVICE: u64 = 0x8000_0001;
const QUERY_DEVICE_IN: usize = 8;
const QUERY_DEVICE_OUT: usize = 176;

/// The object of async events, and its only method, which creates a descriptor.
const ASYNC_EVENT: u16 = 16;
const ALLOC: u16 = 0;

/// A descriptor that a command created.
pub(super) type Made = Option<(FileId, Option<OwnedFd>)>;

/// The attributes that each method knows.
fn known(object: u16, method: u16) -> Option<&'static [u16]> {
    Some(match (object, method) {
        (0, INVOKE_WRITE) => &[0, 1, 2, UHW_IN, UHW_OUT],
        (0, INFO_HANDLES) => &[0, 1, 2],
        (0, QUERY_PORT) => &[0, 1],
        (0, QUERY_GID_TABLE) => &[0, 1, 2, 3],
        (0, GET_CONTEXT) => &[0, 1, UHW_IN, UHW_OUT],
        (ASYNC_EVENT, ALLOC) => &[0],
        _ => return None,
    })
}

/// The number of completion vectors of every device.
const COMPLETION_VECTORS: u32 = 3;

impl World {
    pub(super) fn verbs_ioctl(
        &mut self,
        id: Option<FileId>,
        thread: u32,
        call: &mut VerbsCall<'_>,
    ) -> Sys<Made> {
        let id = id.ok_or(Errno::NOTTY)?;
        let FileState::Cmd { uverbs, context, .. } = self.file(id)?.state else {
            return Err(Errno::NOTTY);
        };
        let instance = &self.uverbs[uverbs.0 as usize];
        let (device, disassociated) = (instance.device, instance.disassociated);
        if call.driver_id != self.devices[device].spec.driver_id {
            return Err(Errno::INVAL);
        }
        let known = known(call.object, call.method);
        let known = known.ok_or(Errno::PROTONOSUPPORT)?;
        if disassociated && !is_answered_when_dead(call) {
            return Err(Errno::IO);
        }
        for (at, attr) in call.attrs.iter().enumerate() {
            // The library marks every attribute as mandatory.
            if !known.contains(&attr.id) {
                return Err(Errno::PROTONOSUPPORT);
            }
            if call.attrs[..at].iter().any(|before| before.id == attr.id) {
                return Err(Errno::INVAL);
            }
        }
        if call.object == ASYNC_EVENT {
            if context.is_none() {
                return Err(Errno::INVAL);
            }
            let state = FileState::Async { uverbs, cmd: id, events: VecDeque::new() };
            return self.open_with(SOCKETS, state, pair()?).map(Some);
        }
        match call.method {
            INFO_HANDLES => self.info_handles(id, disassociated, call),
            GET_CONTEXT => {
                if context.is_some() {
                    return Err(Errno::INVAL);
                }
                self.get_context(device, call)?;
                let context = Some(self.new_context(device, thread));
                self.file_mut(id)?.state = FileState::Cmd { uverbs, context, pds: Pds::new() };
                Ok(())
            }
            INVOKE_WRITE => self.invoke_write(id, device, thread, call),
            _ if context.is_none() => Err(Errno::INVAL),
            QUERY_PORT => query_port(&self.devices[device].ports, call),
            _ => query_gid_table(self.devices[device].guid, call),
        }?;
        Ok(None)
    }

    fn get_context(&mut self, id: DeviceId, call: &mut VerbsCall<'_>) -> Sys<()> {
        let input = input(call, UHW_IN).unwrap_or_default();
        let spec = &self.devices[id].spec;
        if input.len() < spec.driver_data_in || output_len(call, UHW_OUT) < spec.driver_data_out {
            return Err(Errno::INVAL);
        }
        put(call, 0, &COMPLETION_VECTORS.to_ne_bytes())?;
        put(call, 1, &1_u64.to_ne_bytes())?;
        // Drivers up to 7.0 write their whole response, whatever the length.
        let response = spec.response.clone();
        if let Some((memory, _)) = output(call, UHW_OUT)
            && copy(&response, memory) < response.len()
        {
            self.overruns += 1;
        }
        self.devices[id].driver_data = input;
        Ok(())
    }

    fn invoke_write(
        &mut self,
        file: FileId,
        id: DeviceId,
        thread: u32,
        call: &mut VerbsCall<'_>,
    ) -> Sys<()> {
        let command = call.attrs.iter().find(|attr| attr.id == 2).ok_or(Errno::INVAL)?;
        let command = match &command.data {
            AttrData::Const(value) => *value,
            AttrData::In(bytes) => {
                bytes.first_chunk().copied().map(u64::from_ne_bytes).ok_or(Errno::INVAL)?
            }
            _ => return Err(Errno::INVAL),
        };
        let (request_len, answer_len) = match command {
            ALLOC_PD => (8, 4),
            DEALLOC_PD => (4, 0),
            QUERY_DEVICE => (QUERY_DEVICE_IN, QUERY_DEVICE_OUT),
            EX_QUERY_DEVICE => (0, 0),
            _ => return Err(Errno::OPNOTSUPP),
        };
        let request = input(call, 0).unwrap_or_default();
        if request.len() < request_len || output_len(call, 1) < answer_len {
            return Err(Errno::NOSPC);
        }
        // Fields without a meaning to the kernel must be zero.
        if matches!(command, ALLOC_PD | DEALLOC_PD)
            && request.get(request_len..).is_some_and(|more| more.iter().any(|byte| *byte != 0))
        {
            return Err(Errno::OPNOTSUPP);
        }
        if command == DEALLOC_PD {
            // This also works without a context, which has no handles.
            let handle = request.first_chunk().copied().map(u32::from_ne_bytes);
            return self.dealloc_pd(file, handle.unwrap_or_default());
        }
        if !matches!(self.file(file)?.state, FileState::Cmd { context: Some(_), .. }) {
            return Err(Errno::INVAL);
        }
        let mut answer = |answer: &[u8]| {
            if let Some((memory, len)) = output(call, 1) {
                let response = &mut memory[..len];
                response.fill(0);
                copy(answer, response);
            }
        };
        match command {
            ALLOC_PD => self.alloc_pd(file, thread, |handle| answer(&handle.to_ne_bytes())),
            EX_QUERY_DEVICE => query_device_extended(&self.devices[id], call),
            _ => {
                answer(&query_device(&self.devices[id]));
                Ok(())
            }
        }
    }

    /// The handles of one kind of object that the descriptor has: here, of PDs.
    fn info_handles(&self, file: FileId, is_dead: bool, call: &mut VerbsCall<'_>) -> Sys<()> {
        let object = input(call, 0).ok_or(Errno::INVAL)?;
        let room = output_len(call, 2);
        if room == 0 || !room.is_multiple_of(4) {
            return Err(Errno::INVAL);
        }
        let is_pd = object.first_chunk().copied().map(u64::from_ne_bytes) == Some(PD_OBJECT);
        let handles: Vec<u8> = match &self.file(file)?.state {
            FileState::Cmd { pds, .. } if is_pd && !is_dead => {
                pds.keys().take(room / 4).flat_map(|handle| handle.to_ne_bytes()).collect()
            }
            _ => Vec::new(),
        };
        if let Some((memory, _)) = output(call, 2) {
            copy(&handles, memory);
        }
        put(call, 1, &(handles.len() as u32 / 4).to_ne_bytes())
    }
}

/// Whether a descriptor answers after its device is gone. Its handles can still be freed: their objects went with
/// the device, and freeing them succeeds.
fn is_answered_when_dead(call: &VerbsCall<'_>) -> bool {
    match (call.object, call.method) {
        (0, INFO_HANDLES) => true,
        (0, INVOKE_WRITE) => input(call, 2).as_deref() == Some(&DEALLOC_PD.to_ne_bytes()),
        _ => false,
    }
}

/// `struct ib_uverbs_ex_query_device_resp`, as far as a kernel fills it that does not know its last fields.
fn query_device_extended(device: &IbDevice, call: &mut VerbsCall<'_>) -> Sys<()> {
    const FILLED: usize = 288;
    let mut answer = [0; FILLED];
    answer[..QUERY_DEVICE_OUT].copy_from_slice(&query_device(device));
    answer[180..184].copy_from_slice(&(FILLED as u32).to_ne_bytes()); // response_length
    answer[216..224].copy_from_slice(&1000_u64.to_ne_bytes()); // hca_core_clock
    answer[224..232].copy_from_slice(&(1_u64 << 33).to_ne_bytes()); // device_cap_flags_ex
    let (memory, len) = output(call, 1).ok_or(Errno::INVAL)?;
    if len < QUERY_DEVICE_OUT + 8 {
        return Err(Errno::NOSPC);
    }
    copy(&answer, &mut memory[..len]);
    Ok(())
}

/// `struct ib_uverbs_query_port_resp_ex`: each port is on Ethernet.
fn query_port(ports: &[Port], call: &mut VerbsCall<'_>) -> Sys<()> {
    let number = input(call, 0).and_then(|bytes| Some(u64::from_ne_bytes(*bytes.first_chunk()?)));
    let at = number.and_then(|number| number.checked_sub(1)).ok_or(Errno::INVAL)?;
    let port = ports.get(at as usize).ok_or(Errno::INVAL)?;
    let mut answer = [0; 48];
    answer[4..8].copy_from_slice(&0x80_0000_u32.to_ne_bytes()); // max_msg_sz
    answer[16..20].copy_from_slice(&16_u32.to_ne_bytes()); // gid_tbl_len
    answer[20..22].copy_from_slice(&1_u16.to_ne_bytes()); // pkey_tbl_len
    // state, max_mtu, active_mtu
    answer[26..29].copy_from_slice(&[port.state, 5, 3]);
    // active_width, active_speed, phys_state, link_layer
    answer[34..38].copy_from_slice(&[1, 4, port.physical_state, 2]);
    put(call, 1, &answer)
}

/// One entry: a link-local address that is derived from the GUID.
fn query_gid_table(guid: u64, call: &mut VerbsCall<'_>) -> Sys<()> {
    const ENTRY: usize = 32;
    if input(call, 0).as_deref() != Some(&(ENTRY as u64).to_ne_bytes()) {
        return Err(Errno::INVAL);
    }
    let mut entry = [0; ENTRY];
    entry[..2].copy_from_slice(&[0xfe, 0x80]);
    entry[8..16].copy_from_slice(&guid.to_be_bytes());
    entry[20..24].copy_from_slice(&1_u32.to_ne_bytes()); // port_num
    entry[24..28].copy_from_slice(&2_u32.to_ne_bytes()); // gid_type
    let (memory, len) = output(call, 2).ok_or(Errno::INVAL)?;
    if len < ENTRY {
        return Err(Errno::INVAL);
    }
    memory[..ENTRY].copy_from_slice(&entry);
    put(call, 3, &1_u64.to_ne_bytes())
}

/// The bytes of an input attribute.
fn input(call: &VerbsCall<'_>, id: u16) -> Option<Vec<u8>> {
    call.attrs.iter().find(|attr| attr.id == id).and_then(|attr| match &attr.data {
        AttrData::In(bytes) => Some(bytes.to_vec()),
        AttrData::Const(value) => Some(value.to_ne_bytes().to_vec()),
        _ => None,
    })
}

/// The memory of an output attribute, and the length that the kernel is given.
fn output<'a>(call: &'a mut VerbsCall<'_>, id: u16) -> Option<(&'a mut [u8], usize)> {
    let attr = call.attrs.iter_mut().find(|attr| attr.id == id)?;
    match &mut attr.data {
        AttrData::Out { buffer, len } => {
            let len = usize::from(*len).min(buffer.len());
            Some((buffer, len))
        }
        _ => None,
    }
}

fn output_len(call: &mut VerbsCall<'_>, id: u16) -> usize {
    output(call, id).map_or(0, |(_, len)| len)
}

/// Writes an output of fixed size, if the call has that attribute.
fn put(call: &mut VerbsCall<'_>, id: u16, value: &[u8]) -> Sys<()> {
    match output(call, id) {
        None => Ok(()),
        Some((_, len)) if len != value.len() => Err(Errno::INVAL),
        Some((memory, _)) => {
            memory[..value.len()].copy_from_slice(value);
            Ok(())
        }
    }
}

/// `struct ib_uverbs_query_device_resp` (`rdma/ib_user_verbs.h`).
fn query_device(device: &IbDevice) -> [u8; QUERY_DEVICE_OUT] {
    let guid = device.guid;
    let mut answer = [0; QUERY_DEVICE_OUT];
    let mut put = |at: usize, bytes: &[u8]| answer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0x0001_0002_0003_u64.to_ne_bytes()); // fw_ver
    put(8, &guid.to_be_bytes()); // node_guid
    put(16, &guid.to_be_bytes()); // sys_image_guid
    put(24, &u64::MAX.to_ne_bytes()); // max_mr_size
    put(32, &0xffff_f000_u64.to_ne_bytes()); // page_size_cap
    put(40, &0x15b3_u32.to_ne_bytes()); // vendor_id
    put(52, &1024_u32.to_ne_bytes()); // max_qp
    put(56, &4096_u32.to_ne_bytes()); // max_qp_wr
    put(64, &30_u32.to_ne_bytes()); // max_sge
    put(72, &1024_u32.to_ne_bytes()); // max_cq
    put(76, &4096_u32.to_ne_bytes()); // max_cqe
    put(80, &1024_u32.to_ne_bytes()); // max_mr
    put(84, &1024_u32.to_ne_bytes()); // max_pd
    put(168, &16_u16.to_ne_bytes()); // max_pkeys
    put(171, &[device.ports.len().min(255) as u8]); // phys_port_cnt
    answer
}
