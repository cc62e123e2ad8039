/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * uverbs: lists the RDMA verbs devices of a Linux host, and opens exactly the one that was listed.
 * Made by cbindgen from the Rust sources: do not edit. See uverbs(7).
 *
 * Results. A function that can fail returns 0 or more, or a negative errno. If its last argument `error` is not null,
 * *error is set to null on success, and on failure to an error that the caller frees (uverbs_error_free). *error need
 * not be initialised, and an error that is still there is overwritten, not freed. A function without that argument
 * can fail only with -EINVAL for a wrong argument, and with -ENOTRECOVERABLE. When a function fails, the pointer that
 * it would have returned through an argument is null.
 *
 * Null. No function crashes on a null pointer: -EINVAL, or "nothing" where it returns no error.
 *
 * Ownership. A pointer to const that is returned is borrowed: it lives as long as the object that it came from. Any
 * other pointer that is returned is a reference of the caller's, who drops it with the type's _unref function. _ref
 * adds a reference, also to a borrowed object. _unref accepts null, and returns null: `p = x_unref(p)`.
 *
 * Structs. The caller passes the size of its struct. What the struct lacks is left out, and what the library does not
 * know is set to zero. So a program and a library of different versions work together.
 *
 * Texts. A function that copies a text to a buffer copies what fits, ended by a NUL, and returns the length of the
 * whole text, as snprintf(3) does. With size 0 the buffer may be null.
 *
 * Threads. Objects may be shared by threads. The library keeps no state of its own, neither per process nor per
 * thread. No function is a cancellation point. A forked child makes a registry of its own.
 */


#ifndef UVERBS_H
#define UVERBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A kind of change that this interface has no number for.
#define UVERBS_CHANGE_OTHER 0

// A device was added. It may not be usable yet.
#define UVERBS_CHANGE_ADDED 1

// A device that was added can be opened by this process now. Only a watch reports this, once for each device.
#define UVERBS_CHANGE_READY 2

// A device was removed.
#define UVERBS_CHANGE_REMOVED 3

// A device was removed, and another one has its number.
#define UVERBS_CHANGE_REPLACED 4

// A device has another name.
#define UVERBS_CHANGE_RENAMED 5

// Changes may be missing from those that were reported before this. The state is right. Only a watch reports this.
#define UVERBS_CHANGE_RESYNCHRONISED 6

// Open the device also where it cannot be proved to be the right one.
#define UVERBS_OPEN_ALLOW_UNPROVEN 1

// Refuse a device whose timestamp has moved since the last list.
#define UVERBS_OPEN_STRICT_TIMESTAMPS 2

// There is no error: the kind of a null pointer.
#define UVERBS_ERROR_NONE 0

// No such device is listed. The function returns -ENOENT.
#define UVERBS_ERROR_NOT_FOUND 1

// More than one device matches. -ENOTUNIQ.
#define UVERBS_ERROR_AMBIGUOUS 2

// The device that was listed is gone. -ENODEV.
#define UVERBS_ERROR_REMOVED 3

// The device that was listed is gone, and another one stands in its place. -ESTALE.
#define UVERBS_ERROR_REPLACED 4

// The device would not stay still long enough to be checked. Trying again later may help. -EAGAIN.
#define UVERBS_ERROR_UNSTABLE 5

// The node or the descriptor leads to another device than the requested one. -ENXIO.
#define UVERBS_ERROR_NODE_MISMATCH 6

// Nothing contradicts that it is the right device, but it could not be proved. -ENODATA.
#define UVERBS_ERROR_UNPROVEN 7

// The device is alive, and RDMA netlink does not list it: it may belong to another network namespace. -EXDEV.
#define UVERBS_ERROR_OTHER_NAMESPACE 8

// RDMA netlink is not available, and nothing can be proved without it. -EPROTONOSUPPORT.
#define UVERBS_ERROR_NETLINK_UNAVAILABLE 9

// The kernel forbids it to this user. -EACCES or -EPERM.
#define UVERBS_ERROR_PERMISSION_DENIED 10

// The kernel, or a sandbox around this process, cannot do what is needed. -EOPNOTSUPP.
#define UVERBS_ERROR_UNSUPPORTED 11

// The driver's ABI is of a version that the library cannot handle. -ENOTSUP.
#define UVERBS_ERROR_ABI_MISMATCH 12

// The device's provider cannot handle it. -ENOTSUP.
#define UVERBS_ERROR_PROVIDER 13

// It is in use: by another thread, by another reference, or by another watch. -EBUSY.
#define UVERBS_ERROR_BUSY 14

// Something has contents that the kernel would not write. -EBADMSG.
#define UVERBS_ERROR_MALFORMED 15

// Any other error of the operating system. Its errno, negated.
#define UVERBS_ERROR_OS 16

// An argument is wrong: a null pointer, an unknown flag, a size. -EINVAL, or -E2BIG for a struct of a later version
// that uses a field that this version does not have.
#define UVERBS_ERROR_ARGUMENT 17

// The library has a bug, and stopped in the middle of the call. -ENOTRECOVERABLE.
#define UVERBS_ERROR_INTERNAL 18

// A kind that this interface has no number for. -EIO.
#define UVERBS_ERROR_OTHER 19

// The device failed, or is gone. It is the last event.
#define UVERBS_EVENT_DEVICE_FATAL 8

// The kernel names no bus.
#define UVERBS_BUS_UNKNOWN 0

// PCI.
#define UVERBS_BUS_PCI 1

// The auxiliary bus, for parts of a function, such as sub-functions of mlx5.
#define UVERBS_BUS_AUXILIARY 2

// Devices of the platform, such as those of a system on a chip.
#define UVERBS_BUS_PLATFORM 3

// Hyper-V's bus.
#define UVERBS_BUS_VMBUS 4

// No bus: a software device, beneath /sys/devices/virtual.
#define UVERBS_BUS_VIRTUAL 5

// Another bus or class. `bus_name` has its name.
#define UVERBS_BUS_OTHER 6

// There is no PCI function.
#define UVERBS_FUNCTION_NONE 0

// It is neither visibly physical nor visibly virtual. A virtual function that was passed through to a virtual machine
// looks like this there, and so does a function without SR-IOV.
#define UVERBS_FUNCTION_UNKNOWN 1

// A physical function (PF), which can have virtual ones.
#define UVERBS_FUNCTION_PHYSICAL 2

// A virtual function (VF).
#define UVERBS_FUNCTION_VIRTUAL 3

// Room for a PCI address as text, with its NUL.
#define UVERBS_PCI_ADDRESS_SIZE 24

// Room for the name of a directory in sysfs: 255 bytes and a NUL.
#define UVERBS_SYSFS_NAME_SIZE 256

// Room for the name of a network device: IFNAMSIZ.
#define UVERBS_NETDEV_NAME_SIZE 16

// `sys_fd` is the directory to use as /sys.
#define UVERBS_HOST_SYS 1

// `dev_fd` is the directory to use as /dev.
#define UVERBS_HOST_DEV 2

// `netlink_fd` is the RDMA netlink socket to use.
#define UVERBS_HOST_NETLINK 4

// `uevents_fd` is the uevent socket to use.
#define UVERBS_HOST_UEVENTS 8

// Use no RDMA netlink. Devices are listed, but none can be proved.
#define UVERBS_HOST_WITHOUT_NETLINK 16

// Use no uevents. A watch then finds changes only by looking again and again.
#define UVERBS_HOST_WITHOUT_UEVENTS 32

// Accept a /sys that is not sysfs. Nothing that is opened there is ever proved.
#define UVERBS_HOST_FOREIGN_SYS 64

// A buffer for a name: 63 bytes and a NUL, as in the kernel.
#define UVERBS_NAME_SIZE 64

// What happened to a device. Reference-counted.
struct uverbs_change;

// The difference of two lists. Reference-counted.
struct uverbs_changes;

// An open device: its cmd fd, and what was checked on the way. Reference-counted: the descriptor is closed when the
// last reference is dropped. While it is open it keeps some drivers' devices from being removed (those that do not
// disassociate). Threads may share it.
struct uverbs_context;

// A listed device: a handle on one instance, from when a device is added until it is removed. It stays valid after
// the device is gone, and holds no descriptor. Reference-counted.
struct uverbs_device;

// An error: which device, what happened, what was called or compared. It is set by the function that failed, and
// belongs to the caller (uverbs_error_free). All its texts are escaped, and live as long as the error.
//
// The accessors accept a null pointer, which stands for "no error".
struct uverbs_error;

// The async events of a context's device and of its ports, from when this was made. It has a descriptor of its own.
// Reference-counted; one thread at a time uses it. It stays valid after the context is closed, but then gets
// no more events.
struct uverbs_events;

// The checks on the way to a context, in the order in which they were made. Reference-counted.
struct uverbs_evidence;

// The devices that one look at the host found, ordered by uverbs number. It does not change, and its devices outlive
// it if they are referenced. Reference-counted.
struct uverbs_list;

// The devices of a host. Reference-counted. Threads may share it. A forked child makes one of its own.
struct uverbs_registry;

// Follows the devices of a registry, and reports each change. It has no thread: everything happens in the calls. A
// forked child must not use it. Reference-counted; one thread at a time uses it.
struct uverbs_watch;

// The identity of a device, which no other device shares. It is the inode number: the kernel reuses the name, the
// uverbs number, the device number and the GUID at once.
struct uverbs_instance {
    // st_dev of the sysfs mount through which it was seen.
    uint64_t sys_dev;
    // Inode number of the uverbs directory.
    uint64_t ino;
    // st_ctime of the attribute ibdev, in seconds. Evidence only: the kernel may change it.
    int64_t ctime_seconds;
    // The nanoseconds of that.
    uint32_t ctime_nanoseconds;
    // Device number of its node: the major number.
    uint32_t major;
    // And the minor number.
    uint32_t minor;
    // Zero.
    uint32_t reserved;
};

// What the kernel reports about a device over RDMA netlink.
struct uverbs_device_facts {
    // GUID of the node, in host byte order.
    uint64_t node_guid;
    // GUID of the system that the node is part of, in host byte order.
    uint64_t sys_image_guid;
    // Index in netlink. The kernel does not reuse it until ib_core is reloaded.
    uint32_t index;
    // The driver (enum rdma_driver_id); 0 for the drivers that the kernel does not report.
    uint32_t driver_id;
    // Kind of node (enum rdma_node_type).
    uint32_t node_type;
    // The number of ports, which are counted from 1.
    uint32_t port_count;
    // Version of the firmware, in the driver's format, ended by a NUL, cut to 63 bytes.
    char firmware_version[UVERBS_NAME_SIZE];
};

// An async event (ibv_get_async_event). There is nothing to acknowledge.
struct uverbs_async_event {
    // The object of the event: a port's number; the user handle with which a completion queue, queue pair, work queue
    // or shared receive queue was created; 0 for the device.
    uint64_t element;
    // The kind of event (enum ibv_event_type).
    uint32_t kind;
    // The port of the event, counted from 1; 0 if it is not about a port.
    uint32_t port;
};

// A check. Its texts are escaped, and live as long as the evidence.
struct uverbs_check {
    // What was looked at, for programs, such as "uverbs_inode". Stable.
    const char *id;
    // The same for people. The text may change in any version.
    const char *what;
    // The name of the step of the open protocol, such as "pin".
    const char *step_name;
    // What it had to be.
    const char *expected;
    // What it was.
    const char *found;
    // The number of the step, 0 to 7.
    uint32_t step;
    // 1 if it was as expected, otherwise 0.
    uint32_t held;
};

// The address of a PCI function. All of it is zero where there is none.
struct uverbs_pci_address {
    // The domain, also called segment. It may need more than 16 bits.
    uint32_t domain;
    // The bus.
    uint8_t bus;
    // The device on the bus, 0 to 31.
    uint8_t device;
    // The function of the device, 0 to 7.
    uint8_t function;
    // Zero.
    uint8_t reserved;
    // The address as the kernel prints it, such as 0000:3b:00.2; empty where there is none.
    char text[UVERBS_PCI_ADDRESS_SIZE];
};

// The parent of a verbs device: the device that its driver drives, such as a PCI function. The names may have any
// bytes but NUL (uverbs_escape).
struct uverbs_parent {
    // The number of the sub-function, as whoever created it chose it (attribute sfnum); -1 if it is no sub-function.
    int64_t subfunction;
    // The number of the virtual function among those of its physical one, counted from 0, as in `ip link set DEV vf
    // N`; -1 if it is no virtual function, or the number is not known.
    int64_t vf_number;
    // The NUMA node; -1 if there is none.
    int64_t numa_node;
    // UVERBS_BUS_PCI and so on.
    uint32_t bus;
    // UVERBS_FUNCTION_PHYSICAL and so on, of `pci`.
    uint32_t function_kind;
    // The parent where it is a PCI function; the nearest PCI function above it where it is on the auxiliary bus.
    struct uverbs_pci_address pci;
    // The physical function of `pci` where that is a virtual one.
    struct uverbs_pci_address physical;
    // The number of the vendor of `pci`, 0x15b3 for Mellanox.
    uint16_t vendor_id;
    // The vendor's number of the kind of device.
    uint16_t device_id;
    // Zero.
    uint32_t reserved;
    // The name of the bus, such as pci, as the kernel has it, cut to 63 bytes; "virtual" for a software device; empty
    // if the kernel names none.
    char bus_name[UVERBS_NAME_SIZE];
    // The name on the bus, such as 0000:3b:00.2, mlx5_core.sf.4, or a GUID on vmbus, cut to 255 bytes; empty for a
    // software device. The number in the name of an auxiliary device is not that of the sub-function.
    char name[UVERBS_SYSFS_NAME_SIZE];
};

// The network device of a port.
struct uverbs_netdev {
    // The port, counted from 1.
    uint32_t port;
    // Its index (if_nametoindex(3)), in the network namespace of this process.
    uint32_t index;
    // Its name at that moment, which may have any bytes but NUL (uverbs_escape). Names change and are reused, so it is
    // for display.
    char name[UVERBS_NETDEV_NAME_SIZE];
};

// A port as it is seen without a context.
struct uverbs_port_facts {
    // Its number, counted from 1.
    uint32_t port;
    // The rate of the link in Mb/s; 0 if the driver does not report it.
    uint32_t rate;
    // Index of its network device; 0 if it has none.
    uint32_t netdev_index;
    // Logical state (enum ib_port_state): 4 is active.
    uint8_t state;
    // Physical state (enum ib_port_phys_state): 5 is up.
    uint8_t physical_state;
    // Zero.
    uint16_t reserved;
    // Name of its network device, as in struct uverbs_netdev; empty if it has none.
    char netdev_name[UVERBS_NETDEV_NAME_SIZE];
};

// The attributes that QUERY_DEVICE returns (ibv_query_device, struct ib_uverbs_query_device_resp). A field whose
// description is only a kind of resource is the maximum number of them.
struct uverbs_device_attr {
    // Version of the firmware, as the driver encodes it.
    uint64_t firmware_version;
    // GUID of the node, in host byte order.
    uint64_t node_guid;
    // GUID of the system that the node is part of, in host byte order.
    uint64_t sys_image_guid;
    // Largest memory region, in bytes.
    uint64_t max_mr_size;
    // Page sizes that memory regions can have: bit N stands for 2 to the power of N bytes.
    uint64_t page_size_cap;
    // Vendor, as an IEEE OUI or a PCI id.
    uint32_t vendor_id;
    // The vendor's number for this kind of device.
    uint32_t vendor_part_id;
    // Version of the hardware.
    uint32_t hardware_version;
    // Queue pairs.
    uint32_t max_qp;
    // Outstanding work requests in a queue of a queue pair.
    uint32_t max_qp_wr;
    // Capabilities (`enum ib_uverbs_device_cap_flags`).
    uint32_t device_cap_flags;
    // Scatter/gather entries of a work request.
    uint32_t max_sge;
    // Scatter/gather entries of an RDMA read.
    uint32_t max_sge_rd;
    // Completion queues.
    uint32_t max_cq;
    // Entries of a completion queue.
    uint32_t max_cqe;
    // Memory regions.
    uint32_t max_mr;
    // Protection domains.
    uint32_t max_pd;
    // Outstanding RDMA reads and atomics with a queue pair as their target.
    uint32_t max_qp_rd_atom;
    // Outstanding RDMA reads and atomics with an end-to-end context as their target.
    uint32_t max_ee_rd_atom;
    // Outstanding RDMA reads and atomics with the device as their target.
    uint32_t max_res_rd_atom;
    // Outstanding RDMA reads and atomics that a queue pair initiates.
    uint32_t max_qp_init_rd_atom;
    // Outstanding RDMA reads and atomics that an end-to-end context initiates.
    uint32_t max_ee_init_rd_atom;
    // Level of atomicity of atomic operations (`enum ib_atomic_cap`).
    uint32_t atomic_cap;
    // End-to-end contexts.
    uint32_t max_ee;
    // Reliable datagram domains.
    uint32_t max_rdd;
    // Memory windows.
    uint32_t max_mw;
    // Raw IPv6 queue pairs.
    uint32_t max_raw_ipv6_qp;
    // Raw Ethertype queue pairs.
    uint32_t max_raw_ethy_qp;
    // Multicast groups.
    uint32_t max_mcast_grp;
    // Queue pairs attached to one multicast group.
    uint32_t max_mcast_qp_attach;
    // Queue pairs attached to multicast groups.
    uint32_t max_total_mcast_qp_attach;
    // Address handles.
    uint32_t max_ah;
    // Fast memory regions.
    uint32_t max_fmr;
    // Remappings of a fast memory region.
    uint32_t max_map_per_fmr;
    // Shared receive queues.
    uint32_t max_srq;
    // Work requests of a shared receive queue.
    uint32_t max_srq_wr;
    // Scatter/gather entries of a shared receive queue.
    uint32_t max_srq_sge;
    // Partition keys.
    uint16_t max_pkeys;
    // Longest time to an acknowledgement: 4.096 us times two to the power of this.
    uint8_t local_ca_ack_delay;
    // Number of ports.
    uint8_t phys_port_count;
    // Zero.
    uint32_t reserved;
};

// The attributes that the extended QUERY_DEVICE returns beyond those of the plain one (ibv_query_device_ex, struct
// ib_uverbs_ex_query_device_resp). A field that an older kernel does not fill is 0.
struct uverbs_device_attr_ex {
    // On-demand paging in general (`IBV_ODP_SUPPORT`, `IBV_ODP_SUPPORT_IMPLICIT`).
    uint64_t odp_general_caps;
    // The valid bits of a completion's timestamp; 0 if there are no timestamps.
    uint64_t completion_timestamp_mask;
    // Frequency of the device's clock, in kHz; 0 if it has no clock.
    uint64_t hca_core_clock_khz;
    // Capabilities, including those of the plain QUERY_DEVICE (`enum ib_uverbs_device_cap_flags`).
    uint64_t device_cap_flags_ex;
    // Memory of the device itself, in bytes.
    uint64_t max_device_memory;
    // On-demand paging of reliable connections, one bit per operation.
    uint32_t rc_odp_caps;
    // On-demand paging of unreliable connections, likewise.
    uint32_t uc_odp_caps;
    // On-demand paging of unreliable datagrams, likewise.
    uint32_t ud_odp_caps;
    // On-demand paging of extended reliable connections, likewise.
    uint32_t xrc_odp_caps;
    // Types of queue pairs that support receive-side scaling (RSS), one bit per type.
    uint32_t rss_supported_qpts;
    // Indirection tables for receive-side scaling.
    uint32_t max_rwq_indirection_tables;
    // Entries of such a table.
    uint32_t max_rwq_indirection_table_size;
    // Receive work queues.
    uint32_t max_wq_type_rq;
    // Capabilities for raw packets (`enum ib_uverbs_raw_packet_caps`).
    uint32_t raw_packet_caps;
    // Tag matching: largest header of a rendezvous request, in bytes.
    uint32_t tm_max_rndv_hdr_size;
    // Tag matching: entries of a list.
    uint32_t tm_max_num_tags;
    // Tag matching: flags.
    uint32_t tm_flags;
    // Tag matching: outstanding list operations.
    uint32_t tm_max_ops;
    // Tag matching: scatter/gather entries of an entry.
    uint32_t tm_max_sge;
    // Completions that one event may cover.
    uint16_t max_cq_moderation_count;
    // Longest delay of such an event, in microseconds.
    uint16_t max_cq_moderation_period;
    // Zero.
    uint32_t reserved;
};

// The attributes of a port (ibv_query_port, struct ib_uverbs_query_port_resp_ex).
struct uverbs_port_attr {
    // Length of the GID table, in entries.
    uint32_t gid_table_len;
    // Capabilities (enum ib_uverbs_query_port_cap_flags).
    uint32_t capabilities;
    // Largest message, in bytes.
    uint32_t max_message_size;
    // Number of packets with a wrong partition key.
    uint32_t bad_pkey_count;
    // Number of packets with a wrong queue key.
    uint32_t qkey_violation_count;
    // Speed of one lane (enum ib_port_speed).
    uint32_t active_speed;
    // The rate of the link in Mb/s; 0 if this version has no name for the width or the speed.
    uint32_t rate;
    // Length of the partition key table, in entries.
    uint16_t pkey_table_len;
    // More capabilities (port_cap_flags2).
    uint16_t more_capabilities;
    // Local identifier; 0 on Ethernet.
    uint16_t lid;
    // Local identifier of the subnet manager.
    uint16_t sm_lid;
    // Logical state (enum ib_port_state): 4 is active.
    uint8_t state;
    // Physical state (enum ib_port_phys_state): 5 is up.
    uint8_t physical_state;
    // Link layer: 1 InfiniBand, 2 Ethernet (IBV_LINK_LAYER_*).
    uint8_t link_layer;
    // Largest payload that the port can carry (enum ib_mtu): 1 is 256 bytes, each further one doubles it.
    uint8_t max_mtu;
    // Largest payload that is in use.
    uint8_t active_mtu;
    // Number of lanes in use (enum ib_port_width).
    uint8_t active_width;
    // Flags of the port (enum ib_uverbs_query_port_flags).
    uint8_t flags;
    // Number of low bits of the LID that are free.
    uint8_t lid_mask_count;
    // Service level of the subnet manager.
    uint8_t sm_service_level;
    // Number of virtual lanes, as encoded in PortInfo.
    uint8_t max_vl_count;
    // The subnet's maximum timeout: 4.096 us times two to the power of this.
    uint8_t subnet_timeout;
    // The subnet manager's reply to the requested type of initialisation.
    uint8_t init_type_reply;
};

// An entry of a GID table that is in use (ibv_query_gid_table, struct ib_uverbs_gid_entry).
struct uverbs_gid_entry {
    // The GID, in network byte order.
    uint8_t gid[16];
    // Its index in the port's table, from 0.
    uint32_t index;
    // The port, counted from 1.
    uint32_t port;
    // The protocol that it is for: 0 InfiniBand, 1 RoCE v1, 2 RoCE v2 (enum ib_uverbs_gid_type).
    uint32_t kind;
    // Interface index of its network device; 0 if it has none.
    uint32_t netdev_index;
};

// What a registry is made of. Fields whose flag is not set are not read. A struct of zeros stands for this process's
// own /sys, /dev, RDMA netlink and uevents.
//
// If one of the directories is passed in, the library opens no socket of its own: nothing can be proved without
// `netlink_fd` then. With both directories and a socket, everything afterwards uses no path and makes no socket, and
// the process may be sandboxed before or after.
struct uverbs_host_options {
    // UVERBS_HOST_SYS and so on.
    uint32_t flags;
    // The directory /sys.
    int32_t sys_fd;
    // The directory /dev.
    int32_t dev_fd;
    // A socket as of socket(AF_NETLINK, SOCK_RAW, NETLINK_RDMA), which is not subscribed to a group and which nobody
    // else reads.
    int32_t netlink_fd;
    // A socket as of socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT), bound to group 1, which nobody else reads.
    // One watch at a time can use it.
    int32_t uevents_fd;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Adds a reference. Returns the change.
struct uverbs_change *uverbs_change_ref(const struct uverbs_change *change);

// Drops a reference. Returns null.
struct uverbs_change *uverbs_change_unref(struct uverbs_change *change);

// What happened: UVERBS_CHANGE_ADDED and so on.
uint32_t uverbs_change_kind(const struct uverbs_change *change);

// The device, of a replacement the new one; null if there is none. Borrowed from the change.
const struct uverbs_device *uverbs_change_device(const struct uverbs_change *change);

// The device that was replaced; null if the change is no replacement. Borrowed from the change.
const struct uverbs_device *uverbs_change_old_device(const struct uverbs_change *change);

// The name of a device that was added, of a replacement, or of a renamed device, as its bytes are; null if the change
// has none. It lives as long as the change.
const char *uverbs_change_name(const struct uverbs_change *change);

// The name that a renamed device had before, as its bytes are; null if the change has none. It lives as long as the
// change.
const char *uverbs_change_old_name(const struct uverbs_change *change);

// Why changes may be missing: "overflow", "cut", "events_missing" or "no_events"; null if the change is of another
// kind. It lives as long as the change.
const char *uverbs_change_reason(const struct uverbs_change *change);

// The change in one line, escaped, such as "mlx5_0 (uverbs0): added"; null for a null pointer. It lives as long as
// the change.
const char *uverbs_change_text(const struct uverbs_change *change);

// Adds a reference. Returns the changes.
struct uverbs_changes *uverbs_changes_ref(const struct uverbs_changes *changes);

// Drops a reference. Returns null.
struct uverbs_changes *uverbs_changes_unref(struct uverbs_changes *changes);

// The number of changes.
size_t uverbs_changes_count(const struct uverbs_changes *changes);

// The change at that place, counted from 0; null if there is none. Borrowed from the changes.
const struct uverbs_change *uverbs_changes_get(const struct uverbs_changes *changes, size_t place);

// Opens the device (ibv_open_device). Returns 0 and a context that is proved to be on exactly this instance, or an
// error: UVERBS_ERROR_REMOVED and UVERBS_ERROR_REPLACED if the device is gone, UVERBS_ERROR_NODE_MISMATCH if the node
// in /dev leads elsewhere, UVERBS_ERROR_UNPROVEN, UVERBS_ERROR_OTHER_NAMESPACE or UVERBS_ERROR_NETLINK_UNAVAILABLE if
// the kernel cannot show which device it is.
//
// The driver may wait for its device's firmware, without limit. The proof starts a thread and waits for it to exit;
// the calling thread has all signals blocked meanwhile.
int uverbs_open(const struct uverbs_device *device,
                struct uverbs_context **context,
                struct uverbs_error **error);

// As uverbs_open, with UVERBS_OPEN_ALLOW_UNPROVEN and the like in `flags`. Returns 0 if the context is proved. With
// UVERBS_OPEN_ALLOW_UNPROVEN it may return 1: the context could not be proved, and no check contradicted it. See
// uverbs_context_unproven_reason.
int uverbs_open_with(const struct uverbs_device *device,
                     uint32_t flags,
                     struct uverbs_context **context,
                     struct uverbs_error **error);

// Adds a reference. Returns the context.
struct uverbs_context *uverbs_context_ref(const struct uverbs_context *context);

// Drops a reference, and closes the device with the last one. Returns null.
struct uverbs_context *uverbs_context_unref(struct uverbs_context *context);

// The cmd fd, or -EINVAL. Borrowed from the context: do not close it.
int uverbs_context_fd(const struct uverbs_context *context);

// Takes the cmd fd out of the context, and frees the context. The descriptor then belongs to the caller, who closes
// it. Fails with -EBUSY, and changes nothing, if there are other references to the context. Evidence and device stay
// valid where the caller has a reference to them.
int uverbs_context_take_fd(struct uverbs_context *context,
                           int *fd,
                           struct uverbs_error **error);

// The device that it was opened for. Borrowed from the context.
const struct uverbs_device *uverbs_context_device(const struct uverbs_context *context);

// Every check of the open. Borrowed from the context.
const struct uverbs_evidence *uverbs_context_evidence(const struct uverbs_context *context);

// Whether it is proved to be on the device.
bool uverbs_context_is_proven(const struct uverbs_context *context);

// Why it could not be proved; null if it is proved. Borrowed from the context.
const struct uverbs_error *uverbs_context_unproven_reason(const struct uverbs_context *context);

// The driver (enum rdma_driver_id), as the descriptor reports it; 0 for a null pointer.
uint32_t uverbs_context_driver_id(const struct uverbs_context *context);

// Number of completion vectors (num_comp_vectors of struct ibv_context).
uint32_t uverbs_context_completion_vectors(const struct uverbs_context *context);

// Whether the device is still there, according to sysfs: 1, 0, or an error. With a driver that does not disassociate,
// the removal of the device waits until the context is closed, and the context reports nothing meanwhile. A program
// that holds a context on such a device for long calls this now and then.
int uverbs_context_is_device_present(const struct uverbs_context *context,
                                     struct uverbs_error **error);

// Adds a reference. Returns the device.
struct uverbs_device *uverbs_device_ref(const struct uverbs_device *device);

// Drops a reference. Returns null.
struct uverbs_device *uverbs_device_unref(struct uverbs_device *device);

// Whether both are handles on the same instance, whatever their names.
bool uverbs_device_equal(const struct uverbs_device *one, const struct uverbs_device *other);

// Copies the name at the last listing or open, such as mlx5_0, to `buffer` by the rule of texts. A name may have any
// bytes but NUL: uverbs_escape makes it fit for a terminal. Names change and are reused, so they are for display.
int uverbs_device_name(const struct uverbs_device *device,
                       char *buffer,
                       size_t size);

// Copies the name and the name of the node, such as "mlx5_0 (uverbs0)", escaped, to `buffer` by the rule of texts.
int uverbs_device_label(const struct uverbs_device *device,
                        char *buffer,
                        size_t size);

// Copies the name of its node in /dev/infiniband, such as uverbs0, to `buffer` by the rule of texts.
int uverbs_device_node_name(const struct uverbs_device *device,
                            char *buffer,
                            size_t size);

// Sets `number` to the N of uverbsN. The kernel reuses it as soon as the device is gone.
int uverbs_device_uverbs_number(const struct uverbs_device *device, uint32_t *number);

// Sets `major` and `minor` to the device number of its node. Either may be null.
int uverbs_device_number(const struct uverbs_device *device, uint32_t *major, uint32_t *minor);

// Fills `instance` with the device's identity. `size` is sizeof(struct uverbs_instance).
int uverbs_device_instance(const struct uverbs_device *device,
                           struct uverbs_instance *instance,
                           size_t size);

// Whether the device is already known to be gone. Makes no system call.
bool uverbs_device_is_known_gone(const struct uverbs_device *device);

// Sets `index` to the device's index in RDMA netlink (ibv_get_device_index). It is looked up on the first use.
int uverbs_device_index(const struct uverbs_device *device,
                        uint32_t *index,
                        struct uverbs_error **error);

// Sets `driver_id` to the driver (enum rdma_driver_id, rdma/ib_user_ioctl_verbs.h); to 0 for the drivers that the
// kernel does not report (mthca, hns).
int uverbs_device_driver_id(const struct uverbs_device *device,
                            uint32_t *driver_id,
                            struct uverbs_error **error);

// Sets `guid` to the GUID of the node, in host byte order. (ibv_get_device_guid returns it in network byte order.)
int uverbs_device_node_guid(const struct uverbs_device *device,
                            uint64_t *guid,
                            struct uverbs_error **error);

// Queries what the kernel reports about the device over RDMA netlink. `size` is sizeof(struct uverbs_device_facts).
int uverbs_device_query(const struct uverbs_device *device,
                        struct uverbs_device_facts *facts,
                        size_t size,
                        struct uverbs_error **error);

// Whether this process could open the device now: 0, or an error with the reason. It opens nothing.
int uverbs_device_check_ready(const struct uverbs_device *device, struct uverbs_error **error);

// What kind of error it is: UVERBS_ERROR_NOT_FOUND and so on.
uint32_t uverbs_error_kind(const struct uverbs_error *error);

// The kind in a word, such as "node_mismatch". Codes are stable: a kind has the same one in every version.
const char *uverbs_error_code(const struct uverbs_error *error);

// The step of the open protocol in which it came up, 0 to 7; -1 if it came up in none.
int uverbs_error_step(const struct uverbs_error *error);

// The name of that step, such as "prove"; null if there is none.
const char *uverbs_error_step_name(const struct uverbs_error *error);

// The device that it is about, such as "mlx5_0 (uverbs0)"; null if it is about none.
const char *uverbs_error_device(const struct uverbs_error *error);

// The errno of the system call that failed first; 0 if none failed.
int uverbs_error_errno(const struct uverbs_error *error);

// What was called or compared, and the result: a system call as strace prints it, the values of a check, or a text.
const char *uverbs_error_cause(const struct uverbs_error *error);

// Everything in one line: the device, what happened, the cause, the step and the hint.
const char *uverbs_error_message(const struct uverbs_error *error);

// What it may come from, or what to do about it; null if no more than the cause is known.
const char *uverbs_error_hint(const struct uverbs_error *error);

// The checks that were made before it came up, of an error of an open or of a verification; null if there are none.
// The last one did not hold where it is the cause. Borrowed from the error.
const struct uverbs_evidence *uverbs_error_evidence(const struct uverbs_error *error);

// Frees an error. Does nothing if it is null.
void uverbs_error_free(struct uverbs_error *error);

// Opens the async events of a context, from now on. Keep one and wait on it: events that happen while none is open
// are lost.
int uverbs_events_open(const struct uverbs_context *context,
                       struct uverbs_events **events,
                       struct uverbs_error **error);

// Adds a reference. Returns the events.
struct uverbs_events *uverbs_events_ref(const struct uverbs_events *events);

// Drops a reference, and closes the descriptor with the last one. Returns null.
struct uverbs_events *uverbs_events_unref(struct uverbs_events *events);

// The descriptor, or -EINVAL. It is non-blocking, and readable for poll(2) and the like when there may be an event.
// Borrowed: do not close or read it.
int uverbs_events_fd(const struct uverbs_events *events);

// Returns 1 and the next event, or 0 if there is none yet or if the events have ended. Does not wait. `size` is
// sizeof(struct uverbs_async_event).
int uverbs_events_next(const struct uverbs_events *events,
                       struct uverbs_async_event *event,
                       size_t size,
                       struct uverbs_error **error);

// As uverbs_events_next, but waits for an event for at most that many milliseconds, or without a limit if
// `timeout_ms` is negative. Returns 0 if the time is over or if the events have ended. Signals do not end the wait.
int uverbs_events_wait(const struct uverbs_events *events,
                       int timeout_ms,
                       struct uverbs_async_event *event,
                       size_t size,
                       struct uverbs_error **error);

// Whether the events have ended: the device failed or is gone, and no more events come. False while another thread
// waits for an event.
bool uverbs_events_has_ended(const struct uverbs_events *events);

// Adds a reference. Returns the evidence.
struct uverbs_evidence *uverbs_evidence_ref(const struct uverbs_evidence *evidence);

// Drops a reference. Returns null.
struct uverbs_evidence *uverbs_evidence_unref(struct uverbs_evidence *evidence);

// The number of checks.
size_t uverbs_evidence_count(const struct uverbs_evidence *evidence);

// Fills `check` with the check at that place, counted from 0. `size` is sizeof(struct uverbs_check). Returns 0, or
// -EINVAL if there is none.
int uverbs_evidence_get(const struct uverbs_evidence *evidence,
                        size_t place,
                        struct uverbs_check *check,
                        size_t size);

// The netlink index under which the kernel lists the context; -1 if it is not known.
int64_t uverbs_evidence_index(const struct uverbs_evidence *evidence);

// The number under which the kernel lists the context (RDMA_NLDEV_ATTR_RES_CTXN); -1 if it is not known.
int64_t uverbs_evidence_context_number(const struct uverbs_evidence *evidence);

// Whether a protection domain that the proof allocated could not be freed. It lives until the context is closed.
bool uverbs_evidence_leaked_pd(const struct uverbs_evidence *evidence);

// Adds a reference. Returns the list.
struct uverbs_list *uverbs_list_ref(const struct uverbs_list *list);

// Drops a reference. Returns null.
struct uverbs_list *uverbs_list_unref(struct uverbs_list *list);

// The number of devices.
size_t uverbs_list_count(const struct uverbs_list *list);

// The device at that place in the list, counted from 0; null if there is none. Borrowed from the list. The place is
// neither its uverbs number nor its netlink index.
const struct uverbs_device *uverbs_list_get(const struct uverbs_list *list,
                                            size_t place);

// The number of devices that could not be read and are missing from the list.
size_t uverbs_list_fault_count(const struct uverbs_list *list);

// The error of such a device, counted from 0; null if there is none. Borrowed from the list.
const struct uverbs_error *uverbs_list_fault(const struct uverbs_list *list, size_t place);

// The device that had that name in this list. The name is compared byte by byte.
int uverbs_list_by_name(const struct uverbs_list *list,
                        const char *name,
                        struct uverbs_device **device,
                        struct uverbs_error **error);

// The device with that node GUID, in host byte order. Each device of the list is queried. A GUID is not an identity:
// several devices may have the same one.
int uverbs_list_by_guid(const struct uverbs_list *list,
                        uint64_t guid,
                        struct uverbs_device **device,
                        struct uverbs_error **error);

// The device that has this index in RDMA netlink.
int uverbs_list_by_index(const struct uverbs_list *list,
                         uint32_t index,
                         struct uverbs_device **device,
                         struct uverbs_error **error);

// The device uverbsN.
int uverbs_list_by_uverbs_number(const struct uverbs_list *list,
                                 uint32_t number,
                                 struct uverbs_device **device,
                                 struct uverbs_error **error);

// The device of the PCI function at that address, such as 0000:3b:00.2, with its domain: the one whose parent is the
// function, or is a sub-function or another part of it. The parents of the devices beneath the function are read, and
// no others. An address is not an identity: a function may have several devices (uverbs_list_all_by_pci), and after a
// hot plug it may be another function's.
int uverbs_list_by_pci(const struct uverbs_list *list,
                       const char *address,
                       struct uverbs_device **device,
                       struct uverbs_error **error);

// All devices of the PCI function at that address, in the order of the list, otherwise as uverbs_list_by_pci. Fills up
// to `room` entries of an array with devices that are borrowed from the list. Returns the number of devices that there
// are, which may be 0, and more than `room`.
int uverbs_list_all_by_pci(const struct uverbs_list *list,
                           const char *address,
                           const struct uverbs_device **devices,
                           size_t room,
                           struct uverbs_error **error);

// The changes that lead from an older list to this one: removals first, then replacements, renames and additions. If
// `older` is null, every device of this list was added. Both lists have to be of one registry. Makes no system call.
int uverbs_list_changes_since(const struct uverbs_list *list,
                              const struct uverbs_list *older,
                              struct uverbs_changes **changes,
                              struct uverbs_error **error);

// Reads which device it belongs to: bus, name, PCI function, SR-IOV and NUMA node. They are read in sysfs each time.
// One PCI function may have several verbs devices, so an address is no identity. `size` is sizeof(struct
// uverbs_parent).
int uverbs_device_parent(const struct uverbs_device *device,
                         struct uverbs_parent *parent,
                         size_t size,
                         struct uverbs_error **error);

// Reads the network devices of the ports, over RDMA netlink, and fills up to `room` entries of an array. The kernel
// reports those in the network namespace of this process alone, and none for IPoIB. At most 256 ports are read. `size`
// is sizeof(struct uverbs_netdev). Returns the number of network devices that there are, which may be more than
// `room`.
int uverbs_device_netdevs(const struct uverbs_device *device,
                          struct uverbs_netdev *netdevs,
                          size_t size,
                          size_t room,
                          struct uverbs_error **error);

// Reads state, rate and network device of the ports, without a context, and fills up to `room` entries of an array.
// At most 256 ports are read; `port_count` of struct uverbs_device_facts has their number. The kernel queries each
// port, which may wait for the device's firmware. `size` is sizeof(struct uverbs_port_facts). Returns the number of
// ports that were read, which may be more than `room`.
int uverbs_device_ports(const struct uverbs_device *device,
                        struct uverbs_port_facts *ports,
                        size_t size,
                        size_t room,
                        struct uverbs_error **error);

// Queries the device's attributes. `size` is sizeof(struct uverbs_device_attr).
int uverbs_query_device(const struct uverbs_context *context,
                        struct uverbs_device_attr *attributes,
                        size_t size,
                        struct uverbs_error **error);

// Queries more of the device's attributes. `size` is sizeof(struct uverbs_device_attr_ex).
int uverbs_query_device_ex(const struct uverbs_context *context,
                           struct uverbs_device_attr_ex *attributes,
                           size_t size,
                           struct uverbs_error **error);

// Queries a port's attributes. Ports count from 1. `size` is sizeof(struct uverbs_port_attr).
int uverbs_query_port(const struct uverbs_context *context,
                      uint8_t port,
                      struct uverbs_port_attr *attributes,
                      size_t size,
                      struct uverbs_error **error);

// Queries the GIDs in use, of all ports, and fills up to `room` entries of an array. `size` is
// sizeof(struct uverbs_gid_entry). Returns the number of GIDs that there are, which may be more than `room`.
int uverbs_query_gids(const struct uverbs_context *context,
                      struct uverbs_gid_entry *entries,
                      size_t size,
                      size_t room,
                      struct uverbs_error **error);

// Reads the partition keys of a port, in the order of its table, and fills up to `room` entries of an array. Returns
// the number of entries that the table has, which may be more than `room`.
int uverbs_query_pkeys(const struct uverbs_context *context,
                       uint8_t port,
                       uint16_t *pkeys,
                       size_t room,
                       struct uverbs_error **error);

// Makes a registry of this process's /sys, /dev and RDMA netlink. It looks at no device yet.
int uverbs_registry_open(struct uverbs_registry **registry, struct uverbs_error **error);

// Makes a registry of parts that the caller passes in. `size` is sizeof(struct uverbs_host_options). The library
// duplicates the descriptors; the caller keeps its own, and may close them.
int uverbs_registry_open_with(const struct uverbs_host_options *options,
                              size_t size,
                              struct uverbs_registry **registry,
                              struct uverbs_error **error);

// Adds a reference. Returns the registry.
struct uverbs_registry *uverbs_registry_ref(const struct uverbs_registry *registry);

// Drops a reference. Returns null. Lists, devices, contexts and watches stay valid.
struct uverbs_registry *uverbs_registry_unref(struct uverbs_registry *registry);

// Whether RDMA netlink is available: 0, or an error with the reason. Without it devices are listed, but none can be
// proved.
int uverbs_registry_check_netlink(const struct uverbs_registry *registry,
                                  struct uverbs_error **error);

// Looks at the host and lists its devices (ibv_get_device_list). A device that is still the same keeps its record. A
// device that is gone is marked, and its handles report that from then on. A problem of one device does not stop the
// listing: see uverbs_list_fault.
int uverbs_registry_list(const struct uverbs_registry *registry,
                         struct uverbs_list **list,
                         struct uverbs_error **error);

// Finds the device that has this index in RDMA netlink (ibv_get_device_index), without a list.
int uverbs_registry_by_index(const struct uverbs_registry *registry,
                             uint32_t index,
                             struct uverbs_device **device,
                             struct uverbs_error **error);

// Escapes bytes for a terminal or a log: printable ASCII characters stay, others become \n, \x1b and the like. At
// most four characters stand for a byte. Copies the text to `buffer` by the rule of texts.
int uverbs_escape(const char *bytes,
                  size_t length,
                  char *buffer,
                  size_t size);

// Copies a GUID (in host byte order) as sysfs prints it, such as 0002:c903:0005:1234, to `buffer` by the rule of
// texts.
int uverbs_guid_text(uint64_t guid,
                     char *buffer,
                     size_t size);

// Copies the name of a driver (enum rdma_driver_id, rdma/ib_user_ioctl_verbs.h), such as mlx5, or unknown(N), to
// `buffer` by the rule of texts.
int uverbs_driver_name(uint32_t driver_id,
                       char *buffer,
                       size_t size);

// Copies the name of a kind of async event (enum ibv_event_type), such as "port active", or unknown(N), to `buffer`
// by the rule of texts.
int uverbs_async_event_name(uint32_t kind,
                            char *buffer,
                            size_t size);

// The version of the library, such as "0.1.0". The text is static.
const char *uverbs_version(void);

// Proves that a cmd fd is bound to this device. Another library or another process may have opened it, at any time.
// It must have a context. Sets `evidence` to what was checked, unless the pointer is null; drop that with
// uverbs_evidence_unref.
//
// Fails with UVERBS_ERROR_NODE_MISMATCH if the descriptor is on another device, with UVERBS_ERROR_REMOVED or
// UVERBS_ERROR_REPLACED if the device is gone, and with UVERBS_ERROR_UNPROVEN if the kernel cannot show it.
//
// A protection domain is allocated through the descriptor and freed. On bnxt_re this must not happen while the
// descriptor's owner may be allocating its first domain.
int uverbs_device_verify(const struct uverbs_device *device,
                         int fd,
                         struct uverbs_evidence **evidence,
                         struct uverbs_error **error);

// Proves that a cmd fd is bound to the device that a device handle of libibverbs stands for. uverbs_ibv_open in
// uverbs/ibverbs.h calls this with the fields of a struct ibv_device. The handle is proved to be of one device: its
// index, its GUID, its name and its node are those of one device now, and ib_core was not reloaded since the registry
// was made. So make the registry before libibverbs lists devices.
//
// `index` is what ibv_get_device_index returns, `dev_name` and `name` are fields of the handle, `node_guid` is its
// GUID in host byte order, and `fd` is the cmd_fd of the context that libibverbs opened by the handle.
//
// Sets `evidence` as uverbs_device_verify does. Fails with UVERBS_ERROR_REPLACED if the handle is older than its
// device or joins several devices, with UVERBS_ERROR_REMOVED if its device is gone, with UVERBS_ERROR_UNPROVEN if it
// has no index, and otherwise as uverbs_device_verify.
int uverbs_verify_ibv(const struct uverbs_registry *registry,
                      int index,
                      const char *dev_name,
                      const char *name,
                      uint64_t node_guid,
                      int fd,
                      struct uverbs_evidence **evidence,
                      struct uverbs_error **error);

// Makes an error of a call that failed, for code that adds calls of its own to those of this library, as
// uverbs/ibverbs.h does. Sets *error to an error of kind UVERBS_ERROR_OS, unless the pointer is null. `call` is the
// call's name. Returns -errnum.
int uverbs_error_of_call(const char *call,
                         int errnum,
                         struct uverbs_error **error);

// Follows the devices from now on.
int uverbs_watch_open(const struct uverbs_registry *registry,
                      struct uverbs_watch **watch,
                      struct uverbs_error **error);

// As uverbs_watch_open, and reports first what has changed since that list, which has to be of this registry. If
// `older` is null, it reports every device as added.
int uverbs_watch_open_since(const struct uverbs_registry *registry,
                            const struct uverbs_list *older,
                            struct uverbs_watch **watch,
                            struct uverbs_error **error);

// Adds a reference. Returns the watch.
struct uverbs_watch *uverbs_watch_ref(const struct uverbs_watch *watch);

// Drops a reference, and ends the watch with the last one. Returns null.
struct uverbs_watch *uverbs_watch_unref(struct uverbs_watch *watch);

// The descriptor, or -EINVAL. It becomes readable for poll(2) and the like when uverbs_watch_next may return
// something: call that until it returns 0 then. It needs no timer of the caller's. Borrowed: do not close or read it.
int uverbs_watch_fd(const struct uverbs_watch *watch);

// Returns 1 and the next change, or 0 if there is none yet. Does not wait for one. After an error the watch can still
// be used.
int uverbs_watch_next(const struct uverbs_watch *watch,
                      struct uverbs_change **change,
                      struct uverbs_error **error);

// As uverbs_watch_next, but waits for a change for at most that many milliseconds, or without a limit if `timeout_ms`
// is negative. Returns 0 if the time is over. Signals do not end the wait.
int uverbs_watch_wait(const struct uverbs_watch *watch,
                      int timeout_ms,
                      struct uverbs_change **change,
                      struct uverbs_error **error);

// The list that the changes returned so far, and those queued, lead to. Makes no system call.
int uverbs_watch_list(const struct uverbs_watch *watch,
                      struct uverbs_list **list,
                      struct uverbs_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UVERBS_H */
