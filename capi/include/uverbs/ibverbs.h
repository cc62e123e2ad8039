// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Opens a device with libibverbs, and has uverbs prove that it is the one that the handle stands for. See
// uverbs_ibv_open(3).
//
// libuverbs does not use libibverbs, so a program that includes this links both. It needs ibv_get_device_index, of
// rdma-core 30 and later.

#ifndef UVERBS_IBVERBS_H
#define UVERBS_IBVERBS_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include <infiniband/verbs.h>

#include <uverbs.h>

#ifdef __cplusplus
extern "C" {
#endif

// A GUID as libibverbs has it, in network byte order, as a number in host byte order.
static inline uint64_t uverbs_ibv_guid(uint64_t guid)
{
    const unsigned char *bytes = (const unsigned char *)&guid;
    uint64_t number = 0;
    int i;

    for (i = 0; i < 8; i++)
        number = number << 8 | bytes[i];
    return number;
}

// Opens a device handle of libibverbs (ibv_open_device), and proves that the context is on the device that the handle
// stands for (uverbs_verify_ibv). Returns the context, which the caller closes with ibv_close_device. Otherwise it
// returns null, with errno and, unless `error` is null, with *error; nothing is open then.
//
// The registry has to be made before libibverbs lists the devices.
static inline struct ibv_context *uverbs_ibv_open(const struct uverbs_registry *registry,
                                                  struct ibv_device *device,
                                                  struct uverbs_error **error)
{
    struct ibv_context *context;
    int result;

    if (device == NULL) {
        result = uverbs_error_of_call("ibv_open_device", EINVAL, error);
        errno = -result;
        return NULL;
    }
    errno = 0;
    context = ibv_open_device(device);
    if (context == NULL) {
        // libibverbs does not always set it.
        result = uverbs_error_of_call("ibv_open_device", errno != 0 ? errno : ENODEV, error);
        errno = -result;
        return NULL;
    }
    result = uverbs_verify_ibv(registry, ibv_get_device_index(device), device->dev_name,
                               device->name, uverbs_ibv_guid(ibv_get_device_guid(device)),
                               context->cmd_fd, NULL, error);
    if (result < 0) {
        ibv_close_device(context);
        errno = -result;
        return NULL;
    }
    return context;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif
