// SPDX-License-Identifier: GPL-2.0-only
/*
 * A test HCA: RDMA devices that come and go on command.
 *
 * Text written to /dev/uverbs_test_hca registers and unregisters ib_devices. Reading it returns their state. Each PCI
 * function that is bound to the driver gets an ib_device, too. The devices carry no data. They exist to be listed,
 * opened, queried and removed, in every order. README.md describes the commands.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/ctype.h>
#include <linux/device.h>
#if __has_include(<linux/hex.h>)
#include <linux/hex.h>
#endif
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <rdma/ib_verbs.h>
#include <rdma/uverbs_ioctl.h>

#define COMMAND_MAX	(5 * PAGE_SIZE)
#define RECORD_MAX	64
#define DELAY_MAX_MS	60000
#define COUNT_MAX	8000
#define PORTS_MAX	254
#define ADDRESS_MAX	20

/* Bytes of any value, including zeros. */
struct text {
	size_t len;
	char bytes[PAGE_SIZE - 2];
};

/* The parent that a device gets on request. It has a modalias, as a PCI function has. */
struct parent {
	struct device dev;
	struct text modalias;
};

/* What `add` and `set` can set on a device. */
struct setup {
	char name[IB_DEVICE_NAME_MAX];
	u64 guid;
	u64 sys_image_guid;
	u32 driver_id;
	u32 abi;
	u32 node_type;
	u32 ports;
	u32 count;
	bool disassociate;
	char fw_ver[IB_FW_VERSION_NAME_MAX];
	char node_desc[IB_DEVICE_NODE_DESC_MAX];
	u32 delay_ms;
	u32 alloc_errno;
	u32 alloc_pd_errno;
	u32 dealloc_pd_errno;
	u32 query_errno;
	u32 speed;
	u8 response[RECORD_MAX];
	u32 response_len;
	struct text hca_type;
	struct text board_id;
	struct text modalias;
};

struct hca {
	struct ib_device ib;
	struct list_head entry;		/* in hcas, under hcas_lock */
	struct work_struct removal;
	struct parent *parent;
	char function[ADDRESS_MAX];	/* the PCI function's address; empty if there is none */
	u64 id;
	bool removing;			/* under hcas_lock */

	struct mutex lock;		/* the fields below, and the parts of setup that `set` changes */
	struct setup setup;
	u8 last_in[RECORD_MAX];
	size_t last_inlen;
	size_t last_outlen;
	u64 allocs;
	u64 frees;
	u64 failures;
};

static LIST_HEAD(hcas);
static DEFINE_MUTEX(hcas_lock);
static DECLARE_WAIT_QUEUE_HEAD(hcas_changed);
static struct workqueue_struct *removals;
static unsigned int removing_count;
static u64 last_id;

static struct hca *to_hca(struct ib_device *ib)
{
	return container_of(ib, struct hca, ib);
}

/* ---- the parent ---- */

static struct device *parent_root;
static atomic_t parents = ATOMIC_INIT(0);

static ssize_t modalias_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct parent *parent = container_of(dev, struct parent, dev);

	memcpy(buf, parent->modalias.bytes, parent->modalias.len);
	buf[parent->modalias.len] = '\n';
	return parent->modalias.len + 1;
}
static DEVICE_ATTR_RO(modalias);

static struct attribute *parent_attrs[] = {
	&dev_attr_modalias.attr,
	NULL,
};
ATTRIBUTE_GROUPS(parent);

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
static int parent_uevent(const struct device *dev, struct kobj_uevent_env *env)
#else
static int parent_uevent(struct device *dev, struct kobj_uevent_env *env)
#endif
{
	const struct parent *parent = container_of(dev, struct parent, dev);

	return add_uevent_var(env, "MODALIAS=%.*s", (int)min_t(size_t, parent->modalias.len, 512),
			      parent->modalias.bytes);
}

static struct bus_type parent_bus = {
	.name = KBUILD_MODNAME,
	.dev_groups = parent_groups,
	.uevent = parent_uevent,
};

static void parent_release(struct device *dev)
{
	kfree(container_of(dev, struct parent, dev));
	if (atomic_dec_and_test(&parents))
		wake_up_all(&hcas_changed);
}

static struct parent *parent_add(const struct text *modalias, u64 id)
{
	struct parent *parent = kzalloc(sizeof(*parent), GFP_KERNEL);
	int err;

	if (!parent)
		return ERR_PTR(-ENOMEM);
	parent->modalias = *modalias;
	device_initialize(&parent->dev);
	atomic_inc(&parents);
	parent->dev.parent = parent_root;
	parent->dev.bus = &parent_bus;
	parent->dev.release = parent_release;
	err = dev_set_name(&parent->dev, "parent%llu", id);
	if (!err)
		err = device_add(&parent->dev);
	if (err) {
		put_device(&parent->dev);
		return ERR_PTR(err);
	}
	return parent;
}

/* ---- attributes in addition to the core's ---- */

static ssize_t show_text(struct hca *hca, const struct text *text, char *buf)
{
	size_t len;

	mutex_lock(&hca->lock);
	len = text->len;
	memcpy(buf, text->bytes, len);
	mutex_unlock(&hca->lock);
	buf[len] = '\n';
	return len + 1;
}

static ssize_t hca_type_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct hca *hca = rdma_device_to_drv_device(dev, struct hca, ib);

	return show_text(hca, &hca->setup.hca_type, buf);
}
static DEVICE_ATTR_RO(hca_type);

static ssize_t board_id_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct hca *hca = rdma_device_to_drv_device(dev, struct hca, ib);

	return show_text(hca, &hca->setup.board_id, buf);
}
static DEVICE_ATTR_RO(board_id);

static struct attribute *hca_attrs[] = {
	&dev_attr_hca_type.attr,
	&dev_attr_board_id.attr,
	NULL,
};

static const struct attribute_group hca_group = {
	.attrs = hca_attrs,
};

/* ---- the verbs ---- */

/* The core allocates these and needs their size. */
struct bare_pd {
	struct ib_pd pd;
};

struct bare_ucontext {
	struct ib_ucontext context;
};

static int hca_query_device(struct ib_device *ib, struct ib_device_attr *attr, struct ib_udata *udata)
{
	struct hca *hca = to_hca(ib);
	u32 failure = READ_ONCE(hca->setup.query_errno);

	if (failure)
		return -(int)failure;
	if (udata && (udata->inlen || udata->outlen))
		return -EINVAL;
	memset(attr, 0, sizeof(*attr));
	attr->fw_ver = 0x000100020003ULL;
	attr->sys_image_guid = cpu_to_be64(hca->setup.sys_image_guid);
	attr->max_mr_size = ~0ULL;
	attr->page_size_cap = PAGE_SIZE;
	attr->vendor_id = 0xffffff;
	attr->vendor_part_id = 1;
	attr->hw_ver = 1;
	attr->max_pd = 1024;
	attr->max_pkeys = 1;
	attr->local_ca_ack_delay = 15;
	return 0;
}

/* Ports were u8 before Linux 5.13. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 13, 0)
typedef u32 port_number;
#else
typedef u8 port_number;
#endif

static int hca_query_port(struct ib_device *ib, port_number port, struct ib_port_attr *attr)
{
	attr->state = IB_PORT_ACTIVE;
	attr->max_mtu = IB_MTU_4096;
	attr->active_mtu = IB_MTU_4096;
	attr->gid_tbl_len = 1;
	attr->pkey_tbl_len = 1;
	attr->max_msg_sz = 1U << 30;
	attr->lid = port;
	attr->sm_lid = 1;
	attr->max_vl_num = 1;
	attr->active_width = IB_WIDTH_4X;
	attr->active_speed = READ_ONCE(to_hca(ib)->setup.speed);
	attr->phys_state = IB_PORT_PHYS_STATE_LINK_UP;
	return 0;
}

static int hca_get_port_immutable(struct ib_device *ib, port_number port, struct ib_port_immutable *immutable)
{
	/* The IB protocol without management datagrams, so that no client except uverbs uses the device. */
	immutable->core_cap_flags = RDMA_CORE_CAP_PROT_IB;
	immutable->gid_tbl_len = 1;
	immutable->pkey_tbl_len = 1;
	return 0;
}

static enum rdma_link_layer hca_get_link_layer(struct ib_device *ib, port_number port)
{
	return IB_LINK_LAYER_INFINIBAND;
}

static int hca_query_gid(struct ib_device *ib, port_number port, int index, union ib_gid *gid)
{
	gid->global.subnet_prefix = cpu_to_be64(0xfe80000000000000ULL);
	gid->global.interface_id = cpu_to_be64(to_hca(ib)->setup.guid + port);
	return 0;
}

static int hca_query_pkey(struct ib_device *ib, port_number port, u16 index, u16 *pkey)
{
	*pkey = 0xffff;
	return 0;
}

static void hca_get_dev_fw_str(struct ib_device *ib, char *str)
{
	struct hca *hca = to_hca(ib);

	mutex_lock(&hca->lock);
	strscpy(str, hca->setup.fw_ver, IB_FW_VERSION_NAME_MAX);
	mutex_unlock(&hca->lock);
}

static int sleep_killable(u32 ms)
{
	unsigned long left = msecs_to_jiffies(ms);

	while (left && !fatal_signal_pending(current))
		left = schedule_timeout_killable(left);
	return left ? -EINTR : 0;
}

static int hca_alloc_ucontext(struct ib_ucontext *context, struct ib_udata *udata)
{
	struct hca *hca = to_hca(context->device);
	u8 in[RECORD_MAX] = {};
	u8 response[RECORD_MAX];
	u32 response_len, failure;
	int err;

	err = ib_copy_from_udata(in, udata, min_t(size_t, udata->inlen, sizeof(in)));
	if (!err)
		err = sleep_killable(READ_ONCE(hca->setup.delay_ms));

	mutex_lock(&hca->lock);
	memcpy(hca->last_in, in, sizeof(in));
	hca->last_inlen = udata->inlen;
	hca->last_outlen = udata->outlen;
	failure = hca->setup.alloc_errno;
	response_len = min_t(size_t, hca->setup.response_len, udata->outlen);
	memcpy(response, hca->setup.response, response_len);
	mutex_unlock(&hca->lock);

	if (!err && failure)
		err = -(int)failure;
	if (!err && response_len)
		err = ib_copy_to_udata(udata, response, response_len);

	mutex_lock(&hca->lock);
	if (err)
		hca->failures++;
	else
		hca->allocs++;
	mutex_unlock(&hca->lock);
	return err;
}

static void hca_dealloc_ucontext(struct ib_ucontext *context)
{
	struct hca *hca = to_hca(context->device);

	mutex_lock(&hca->lock);
	hca->frees++;
	mutex_unlock(&hca->lock);
}

static void hca_disassociate_ucontext(struct ib_ucontext *context)
{
	/* Nothing is mapped. Because this function exists, a removal does not wait for open descriptors. */
}

static int hca_alloc_pd(struct ib_pd *pd, struct ib_udata *udata)
{
	return -(int)READ_ONCE(to_hca(pd->device)->setup.alloc_pd_errno);
}

/*
 * Whether this is a command, which has its own input. The core also destroys the objects of a closed descriptor or a
 * removed device. It does not expect that to fail, and warns if it does.
 */
static bool is_command(struct ib_udata *udata)
{
	return udata && container_of(udata, struct uverbs_attr_bundle, driver_udata)->ucore.inlen;
}

static int hca_dealloc_pd(struct ib_pd *pd, struct ib_udata *udata)
{
	return is_command(udata) ? -(int)READ_ONCE(to_hca(pd->device)->setup.dealloc_pd_errno) : 0;
}

static const struct ib_device_ops hca_ops = {
	.owner = THIS_MODULE,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 14, 0)
	/* Before Linux 5.14, hca_add gives each device this group. */
	.device_group = &hca_group,
#endif
	.query_device = hca_query_device,
	.query_port = hca_query_port,
	.get_port_immutable = hca_get_port_immutable,
	.get_link_layer = hca_get_link_layer,
	.query_gid = hca_query_gid,
	.query_pkey = hca_query_pkey,
	.get_dev_fw_str = hca_get_dev_fw_str,
	.alloc_ucontext = hca_alloc_ucontext,
	.dealloc_ucontext = hca_dealloc_ucontext,
	.alloc_pd = hca_alloc_pd,
	.dealloc_pd = hca_dealloc_pd,
	INIT_RDMA_OBJ_SIZE(ib_pd, bare_pd, pd),
	INIT_RDMA_OBJ_SIZE(ib_ucontext, bare_ucontext, context),
};

/* ---- registration and removal ---- */

static void hca_remove(struct hca *hca)
{
	struct parent *parent = hca->parent;

	/* Without disassociate_ucontext, this waits until every descriptor is closed. */
	ib_unregister_device(&hca->ib);
	/* The core keeps the name and the index until this point. The entry must not leave our list before. */
	get_device(&hca->ib.dev);
	ib_dealloc_device(&hca->ib);
	if (parent)
		device_unregister(&parent->dev);

	mutex_lock(&hcas_lock);
	list_del(&hca->entry);
	removing_count--;
	mutex_unlock(&hcas_lock);
	put_device(&hca->ib.dev);
	wake_up_all(&hcas_changed);
}

static void hca_removal(struct work_struct *work)
{
	hca_remove(container_of(work, struct hca, removal));
}

/* Under hcas_lock. */
static void hca_mark_removing(struct hca *hca)
{
	hca->removing = true;
	removing_count++;
}

/* Under hcas_lock. */
static void hca_start_removal(struct hca *hca)
{
	hca_mark_removing(hca);
	queue_work(removals, &hca->removal);
}

/* Without a PCI function, pdev is NULL. */
static struct hca *hca_add(const struct setup *setup, struct pci_dev *pdev)
{
	struct hca *hca;
	int err;

	hca = ib_alloc_device(hca, ib);
	if (!hca)
		return ERR_PTR(-ENOMEM);
	INIT_WORK(&hca->removal, hca_removal);
	mutex_init(&hca->lock);
	hca->setup = *setup;
	/* These would make the registration itself fail. */
	hca->setup.query_errno = 0;

	mutex_lock(&hcas_lock);
	hca->id = ++last_id;
	mutex_unlock(&hcas_lock);

	ib_set_device_ops(&hca->ib, &hca_ops);
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 14, 0)
	rdma_set_device_sysfs_group(&hca->ib, &hca_group);
#endif
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
	/* Later kernels allow every command that a driver has a function for. */
	hca->ib.uverbs_cmd_mask = BIT_ULL(IB_USER_VERBS_CMD_GET_CONTEXT) |
				  BIT_ULL(IB_USER_VERBS_CMD_QUERY_DEVICE) |
				  BIT_ULL(IB_USER_VERBS_CMD_QUERY_PORT) |
				  BIT_ULL(IB_USER_VERBS_CMD_ALLOC_PD) |
				  BIT_ULL(IB_USER_VERBS_CMD_DEALLOC_PD);
#endif
	hca->ib.ops.driver_id = setup->driver_id;
	hca->ib.ops.uverbs_abi_ver = setup->abi;
	/* The same as in these drivers. */
	hca->ib.ops.uverbs_no_driver_id_binding =
		setup->driver_id == RDMA_DRIVER_HNS || setup->driver_id == RDMA_DRIVER_MTHCA;
	if (setup->disassociate)
		hca->ib.ops.disassociate_ucontext = hca_disassociate_ucontext;
	hca->ib.node_type = setup->node_type;
	hca->ib.node_guid = cpu_to_be64(setup->guid);
	hca->ib.phys_port_cnt = setup->ports;
	hca->ib.num_comp_vectors = 1;
	memcpy(hca->ib.node_desc, setup->node_desc, sizeof(hca->ib.node_desc));

	if (setup->modalias.len) {
		hca->parent = parent_add(&setup->modalias, hca->id);
		if (IS_ERR(hca->parent)) {
			err = PTR_ERR(hca->parent);
			goto free;
		}
		hca->ib.dev.parent = &hca->parent->dev;
	}
	if (pdev) {
		hca->ib.dev.parent = &pdev->dev;
		strscpy(hca->function, pci_name(pdev), sizeof(hca->function));
	}

	err = ib_register_device(&hca->ib, setup->name, NULL);
	if (err)
		goto unparent;
	WRITE_ONCE(hca->setup.query_errno, setup->query_errno);
	/* The core has put in a number where the name has a %d. */
	if (pdev)
		strscpy(hca->setup.name, dev_name(&hca->ib.dev), sizeof(hca->setup.name));

	mutex_lock(&hcas_lock);
	list_add_tail(&hca->entry, &hcas);
	mutex_unlock(&hcas_lock);
	return hca;

unparent:
	if (hca->parent) {
		struct parent *parent = hca->parent;

		ib_dealloc_device(&hca->ib);
		device_unregister(&parent->dev);
		return ERR_PTR(err);
	}
free:
	ib_dealloc_device(&hca->ib);
	return ERR_PTR(err);
}

static int hca_add_all(struct setup *setup)
{
	size_t len = strlen(setup->name);
	u32 i;
	int err;

	if (!len || !setup->guid)
		return -EINVAL;
	if (!setup->sys_image_guid)
		setup->sys_image_guid = setup->guid;
	if (!setup->count)
		return PTR_ERR_OR_ZERO(hca_add(setup, NULL));
	for (i = 0; i < setup->count; i++) {
		if (snprintf(setup->name + len, sizeof(setup->name) - len, "%u", i) >= sizeof(setup->name) - len)
			return -ENAMETOOLONG;
		err = PTR_ERR_OR_ZERO(hca_add(setup, NULL));
		if (err)
			return err;
		if (fatal_signal_pending(current))
			return -EINTR;
		setup->guid++;
		setup->sys_image_guid++;
		cond_resched();
	}
	return 0;
}

/* ---- commands ---- */

struct selector {
	u64 id;
	u64 guid;
	const char *name;
};

/* Under hcas_lock. If several devices match the key, a live one is preferred. */
static struct hca *hca_find(const struct selector *key)
{
	struct hca *hca, *found = NULL;

	list_for_each_entry(hca, &hcas, entry) {
		if (key->id && hca->id != key->id)
			continue;
		if (key->guid && hca->setup.guid != key->guid)
			continue;
		if (key->name && strcmp(hca->setup.name, key->name))
			continue;
		if (!hca->removing)
			return hca;
		if (!found)
			found = hca;
	}
	return found;
}

static bool hca_gone(u64 id)
{
	const struct selector key = { .id = id };
	bool gone;

	mutex_lock(&hcas_lock);
	gone = !hca_find(&key);
	mutex_unlock(&hcas_lock);
	return gone;
}

static bool hcas_idle(void)
{
	bool idle;

	mutex_lock(&hcas_lock);
	idle = !removing_count;
	mutex_unlock(&hcas_lock);
	return idle;
}

static int hca_del(const struct selector *key, bool sync)
{
	struct hca *hca;
	u64 id = 0;
	int err = 0;

	mutex_lock(&hcas_lock);
	hca = hca_find(key);
	if (!hca)
		err = -ENOENT;
	else if (hca->removing && !sync)
		err = -EALREADY;
	else if (!hca->removing && *hca->function)
		err = -EBUSY;
	else if (!hca->removing)
		hca_start_removal(hca);
	if (hca)
		id = hca->id;
	mutex_unlock(&hcas_lock);
	if (err || !sync)
		return err;
	return wait_event_interruptible(hcas_changed, hca_gone(id));
}

static void hca_del_all(void)
{
	struct hca *hca;

	mutex_lock(&hcas_lock);
	list_for_each_entry(hca, &hcas, entry) {
		if (!hca->removing && !*hca->function)
			hca_start_removal(hca);
	}
	mutex_unlock(&hcas_lock);
}

static int hca_event(const struct selector *key, u32 type, u32 port)
{
	struct ib_event event = {};
	struct hca *hca;
	int err = 0;

	switch (type) {
	case IB_EVENT_DEVICE_FATAL:
	case IB_EVENT_PORT_ACTIVE:
	case IB_EVENT_PORT_ERR:
	case IB_EVENT_LID_CHANGE:
	case IB_EVENT_PKEY_CHANGE:
	case IB_EVENT_SM_CHANGE:
	case IB_EVENT_CLIENT_REREGISTER:
	case IB_EVENT_GID_CHANGE:
		break;
	default:
		return -EINVAL;
	}
	mutex_lock(&hcas_lock);
	hca = hca_find(key);
	if (!hca || hca->removing) {
		err = -ENOENT;
	} else if (!rdma_is_port_valid(&hca->ib, port)) {
		err = -EINVAL;
	} else {
		event.device = &hca->ib;
		event.event = type;
		event.element.port_num = port;
		ib_dispatch_event(&event);
	}
	mutex_unlock(&hcas_lock);
	return err;
}

/* Replaces \\xNN and \\\\ in place. Returns the length; the text may contain zeros. */
static ssize_t unescape(char *value)
{
	char *from = value, *to = value;

	while (*from) {
		int high, low;

		if (*from != '\\') {
			*to++ = *from++;
			continue;
		}
		if (from[1] == '\\') {
			*to++ = '\\';
			from += 2;
			continue;
		}
		if (from[1] != 'x')
			return -EINVAL;
		high = hex_to_bin(from[2]);
		low = high < 0 ? -1 : hex_to_bin(from[3]);
		if (low < 0)
			return -EINVAL;
		*to++ = high << 4 | low;
		from += 4;
	}
	*to = '\0';
	return to - value;
}

/* Copies a string that contains no zeros, and fills the rest with zeros. */
static int take_string(char *into, size_t size, const char *value, size_t len)
{
	if (strlen(value) != len)
		return -EINVAL;
	if (len >= size)
		return -ENAMETOOLONG;
	memset(into, 0, size);
	memcpy(into, value, len);
	return 0;
}

static int take_text(struct text *into, const char *value, size_t len)
{
	if (len > sizeof(into->bytes))
		return -ENAMETOOLONG;
	memcpy(into->bytes, value, len);
	into->len = len;
	return 0;
}

static int take_number(u32 *into, const char *value, u32 min, u32 max)
{
	u32 number;
	int err = kstrtou32(value, 0, &number);

	if (err)
		return err;
	if (number < min || number > max)
		return -ERANGE;
	WRITE_ONCE(*into, number);
	return 0;
}

/* COMMAND:ERRNO */
static int take_failure(struct setup *setup, char *value)
{
	char *command = strsep(&value, ":");

	if (!value)
		return -EINVAL;
	if (!strcmp(command, "GET_CONTEXT"))
		return take_number(&setup->alloc_errno, value, 0, MAX_ERRNO);
	if (!strcmp(command, "ALLOC_PD"))
		return take_number(&setup->alloc_pd_errno, value, 0, MAX_ERRNO);
	if (!strcmp(command, "DEALLOC_PD"))
		return take_number(&setup->dealloc_pd_errno, value, 0, MAX_ERRNO);
	return -EINVAL;
}

/* The keys that are valid both for `add` and for `set`. */
static int take_changeable(struct setup *setup, const char *key, char *value, size_t len)
{
	if (!strcmp(key, "fw_ver"))
		return take_string(setup->fw_ver, sizeof(setup->fw_ver), value, len);
	if (!strcmp(key, "hca_type"))
		return take_text(&setup->hca_type, value, len);
	if (!strcmp(key, "board_id"))
		return take_text(&setup->board_id, value, len);
	if (!strcmp(key, "delay_ms"))
		return take_number(&setup->delay_ms, value, 0, DELAY_MAX_MS);
	if (!strcmp(key, "query_device_errno"))
		return take_number(&setup->query_errno, value, 0, MAX_ERRNO);
	if (!strcmp(key, "speed"))
		return take_number(&setup->speed, value, 0, U16_MAX);
	if (!strcmp(key, "fail"))
		return take_failure(setup, value);
	if (!strcmp(key, "response")) {
		if (len % 2 || len / 2 > sizeof(setup->response) || hex2bin(setup->response, value, len / 2))
			return -EINVAL;
		setup->response_len = len / 2;
		return 0;
	}
	return -EINVAL;
}

static int take_setup(struct setup *setup, const char *key, char *value, size_t len)
{
	u32 flag;
	int err;

	if (!strcmp(key, "name")) {
		/* The core would use it as a format. */
		if (strchr(value, '%'))
			return -EINVAL;
		return take_string(setup->name, sizeof(setup->name), value, len);
	}
	if (!strcmp(key, "guid"))
		return kstrtou64(value, 16, &setup->guid);
	if (!strcmp(key, "sys_image_guid"))
		return kstrtou64(value, 16, &setup->sys_image_guid);
	if (!strcmp(key, "disassociate")) {
		err = take_number(&flag, value, 0, 1);
		if (!err)
			setup->disassociate = flag;
		return err;
	}
	if (!strcmp(key, "driver_id"))
		return take_number(&setup->driver_id, value, 0, U32_MAX);
	if (!strcmp(key, "abi"))
		return take_number(&setup->abi, value, 0, U32_MAX);
	if (!strcmp(key, "node_type"))
		return take_number(&setup->node_type, value, RDMA_NODE_IB_CA, RDMA_NODE_UNSPECIFIED);
	if (!strcmp(key, "ports"))
		return take_number(&setup->ports, value, 1, PORTS_MAX);
	if (!strcmp(key, "count"))
		return take_number(&setup->count, value, 1, COUNT_MAX);
	if (!strcmp(key, "parent"))
		return take_text(&setup->modalias, value, len);
	if (!strcmp(key, "node_desc")) {
		if (len > sizeof(setup->node_desc))
			return -ENAMETOOLONG;
		memset(setup->node_desc, 0, sizeof(setup->node_desc));
		memcpy(setup->node_desc, value, len);
		return 0;
	}
	return take_changeable(setup, key, value, len);
}

/* Parses the next `key=value`. Returns 0 if there is none, and otherwise sets key and value. */
static int next_word(char **rest, char **key, char **value, size_t *len)
{
	ssize_t length;
	char *word;

	do {
		word = strsep(rest, " \t\n");
		if (!word)
			return 0;
	} while (!*word);
	*key = word;
	*value = strchr(word, '=');
	if (!*value)
		return -EINVAL;
	*(*value)++ = '\0';
	length = unescape(*value);
	if (length < 0)
		return length;
	*len = length;
	return 1;
}

static struct setup *default_setup(void)
{
	struct setup *setup = kvzalloc(sizeof(*setup), GFP_KERNEL);

	if (!setup)
		return NULL;
	setup->driver_id = RDMA_DRIVER_RXE;
	setup->abi = 2;
	setup->node_type = RDMA_NODE_IB_CA;
	setup->ports = 1;
	setup->speed = IB_SPEED_EDR;
	setup->disassociate = true;
	strscpy(setup->node_desc, "test HCA", sizeof(setup->node_desc));
	strscpy(setup->fw_ver, "1.2.3", sizeof(setup->fw_ver));
	return setup;
}

/* All words that are left. */
static int take_setups(struct setup *setup, char *rest)
{
	char *key, *value;
	size_t len;
	int err;

	while ((err = next_word(&rest, &key, &value, &len)) > 0) {
		err = take_setup(setup, key, value, len);
		if (err)
			break;
	}
	return err;
}

static int run_add(char *rest)
{
	struct setup *setup = default_setup();
	int err;

	if (!setup)
		return -ENOMEM;
	err = take_setups(setup, rest);
	if (!err)
		err = hca_add_all(setup);
	kvfree(setup);
	return err;
}

/* ---- PCI functions ---- */

/* What a function's device is made of, where that is not the default. */
struct plan {
	struct list_head entry;		/* in plans, under plans_lock */
	char function[ADDRESS_MAX];
	struct setup *setup;
};

static LIST_HEAD(plans);
static DEFINE_MUTEX(plans_lock);

/* Under plans_lock. */
static struct plan *plan_find(const char *function)
{
	struct plan *plan;

	list_for_each_entry(plan, &plans, entry) {
		if (!strcmp(plan->function, function))
			return plan;
	}
	return NULL;
}

/* Under plans_lock. */
static void plan_drop(struct plan *plan)
{
	if (!plan)
		return;
	list_del(&plan->entry);
	kvfree(plan->setup);
	kfree(plan);
}

static void plan_drop_all(void)
{
	struct plan *plan, *next;

	mutex_lock(&plans_lock);
	list_for_each_entry_safe(plan, next, &plans, entry)
		plan_drop(plan);
	mutex_unlock(&plans_lock);
}

/* function=ADDRESS, then what `add` takes. Without that, the default is restored. */
static int run_function(char *rest)
{
	char *word, *value;
	struct plan *plan;
	size_t len;
	int err;

	err = next_word(&rest, &word, &value, &len);
	if (err <= 0)
		return err ?: -EINVAL;
	if (strcmp(word, "function"))
		return -EINVAL;
	plan = kzalloc(sizeof(*plan), GFP_KERNEL);
	if (!plan)
		return -ENOMEM;
	plan->setup = default_setup();
	err = plan->setup ? take_string(plan->function, sizeof(plan->function), value, len) : -ENOMEM;
	if (!err)
		err = take_setups(plan->setup, rest);
	/* A function has one device, and is its parent. */
	if (!err && (plan->setup->count || plan->setup->modalias.len))
		err = -EINVAL;
	if (err) {
		kvfree(plan->setup);
		kfree(plan);
		return err;
	}
	mutex_lock(&plans_lock);
	plan_drop(plan_find(plan->function));
	list_add(&plan->entry, &plans);
	mutex_unlock(&plans_lock);
	return 0;
}

static int function_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct setup *setup = default_setup();
	const struct plan *plan;
	struct hca *hca;
	int err;

	if (!setup)
		return -ENOMEM;
	mutex_lock(&plans_lock);
	plan = plan_find(pci_name(pdev));
	if (plan)
		*setup = *plan->setup;
	mutex_unlock(&plans_lock);
	/* As other drivers do, let the core choose the lowest number that is free. */
	if (!*setup->name)
		strscpy(setup->name, "hca_%d", sizeof(setup->name));
	if (!setup->guid)
		setup->guid = 0x0200000000000000ULL | (u64)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
	if (!setup->sys_image_guid)
		setup->sys_image_guid = setup->guid;

	err = pci_enable_device(pdev);
	if (err)
		goto out;
	hca = hca_add(setup, pdev);
	err = PTR_ERR_OR_ZERO(hca);
	if (err)
		pci_disable_device(pdev);
	else
		pci_set_drvdata(pdev, hca);
out:
	kvfree(setup);
	return err;
}

static void function_remove(struct pci_dev *pdev)
{
	struct hca *hca = pci_get_drvdata(pdev);

	if (pdev->is_physfn)
		pci_disable_sriov(pdev);
	mutex_lock(&hcas_lock);
	hca_mark_removing(hca);
	mutex_unlock(&hcas_lock);
	hca_remove(hca);
	pci_disable_device(pdev);
}

/* It has no ids: it binds to functions by their driver_override, or by its new_id. */
static struct pci_driver function_driver = {
	.name = KBUILD_MODNAME,
	.probe = function_probe,
	.remove = function_remove,
	.sriov_configure = pci_sriov_configure_simple,
};

/* ---- more commands ---- */

static int take_key(struct selector *key, const char *word, const char *value)
{
	if (!strcmp(word, "id"))
		return kstrtou64(value, 10, &key->id);
	if (!strcmp(word, "guid"))
		return kstrtou64(value, 16, &key->guid);
	if (!strcmp(word, "name")) {
		key->name = value;
		return 0;
	}
	return -EINVAL;
}

static int run_del(char *rest, bool sync)
{
	struct selector key = {};
	char *word, *value;
	size_t len;
	int err;

	while ((err = next_word(&rest, &word, &value, &len)) > 0) {
		err = take_key(&key, word, value);
		if (err)
			return err;
	}
	if (err)
		return err;
	if (!key.id && !key.guid && !key.name)
		return -EINVAL;
	return hca_del(&key, sync);
}

/* The first word selects the device, the others are the changes. */
static int run_set(char *rest)
{
	struct selector key = {};
	char *word, *value;
	struct hca *hca;
	size_t len;
	int err;

	err = next_word(&rest, &word, &value, &len);
	if (err <= 0)
		return err ?: -EINVAL;
	err = take_key(&key, word, value);
	if (err)
		return err;
	mutex_lock(&hcas_lock);
	hca = hca_find(&key);
	if (!hca) {
		err = -ENOENT;
		goto out;
	}
	mutex_lock(&hca->lock);
	while ((err = next_word(&rest, &word, &value, &len)) > 0) {
		err = take_changeable(&hca->setup, word, value, len);
		if (err)
			break;
	}
	mutex_unlock(&hca->lock);
out:
	mutex_unlock(&hcas_lock);
	return err;
}

static int run_event(char *rest)
{
	u32 type = 0, port = 1;
	struct selector key = {};
	char *word, *value;
	size_t len;
	int err;

	while ((err = next_word(&rest, &word, &value, &len)) > 0) {
		if (!strcmp(word, "type"))
			err = take_number(&type, value, 0, U32_MAX);
		else if (!strcmp(word, "port"))
			err = take_number(&port, value, 0, U32_MAX);
		else
			err = take_key(&key, word, value);
		if (err)
			return err;
	}
	if (!err && !key.id && !key.guid && !key.name)
		err = -EINVAL;
	return err ?: hca_event(&key, type, port);
}

static int run(char *command)
{
	char *rest = strim(command);
	char *verb = strsep(&rest, " \t\n");

	if (!strcmp(verb, "add"))
		return run_add(rest);
	if (!strcmp(verb, "del"))
		return run_del(rest, false);
	if (!strcmp(verb, "del-sync"))
		return run_del(rest, true);
	if (!strcmp(verb, "set"))
		return run_set(rest);
	if (!strcmp(verb, "event"))
		return run_event(rest);
	if (!strcmp(verb, "pci"))
		return run_function(rest);
	if (rest)
		return -EINVAL;
	if (!strcmp(verb, "del-all")) {
		hca_del_all();
		return 0;
	}
	if (!strcmp(verb, "wait-idle"))
		return wait_event_interruptible(hcas_changed, hcas_idle());
	return -EINVAL;
}

/* ---- the control device ---- */

static ssize_t control_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	char *command;
	int err;

	if (!count || count > COMMAND_MAX)
		return -EINVAL;
	command = memdup_user_nul(from, count);
	if (IS_ERR(command))
		return PTR_ERR(command);
	err = strlen(command) == count ? run(command) : -EINVAL;
	kfree(command);
	return err ? err : count;
}

static void show_escaped(struct seq_file *seq, const char *string)
{
	const u8 *byte;

	for (byte = (const u8 *)string; *byte; byte++) {
		if (*byte > ' ' && *byte < 0x7f && *byte != '\\')
			seq_putc(seq, *byte);
		else
			seq_printf(seq, "\\x%02x", *byte);
	}
}

static int control_show(struct seq_file *seq, void *unused)
{
	struct hca *hca;

	mutex_lock(&hcas_lock);
	list_for_each_entry(hca, &hcas, entry) {
		mutex_lock(&hca->lock);
		seq_printf(seq, "id=%llu name=", hca->id);
		show_escaped(seq, hca->setup.name);
		seq_printf(seq, " guid=%016llx state=%s index=%u disassociate=%d driver_id=%u", hca->setup.guid,
			   hca->removing ? "removing" : "live", hca->ib.index, hca->setup.disassociate,
			   hca->setup.driver_id);
		if (*hca->function)
			seq_printf(seq, " function=%s", hca->function);
		seq_printf(seq, " contexts=%llu allocs=%llu frees=%llu failures=%llu", hca->allocs - hca->frees,
			   hca->allocs, hca->frees, hca->failures);
		seq_printf(seq, " last_inlen=%zu last_outlen=%zu last_in=%*phN\n", hca->last_inlen, hca->last_outlen,
			   (int)min_t(size_t, hca->last_inlen, RECORD_MAX), hca->last_in);
		mutex_unlock(&hca->lock);
	}
	mutex_unlock(&hcas_lock);
	return 0;
}

static int control_open(struct inode *inode, struct file *file)
{
	/* The miscdevice. seq_file does not expect a value here. */
	file->private_data = NULL;
	return single_open(file, control_show, NULL);
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.open = control_open,
	.read = seq_read,
	.write = control_write,
	.llseek = seq_lseek,
	.release = single_release,
};

static struct miscdevice control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.mode = 0600,
	.fops = &control_fops,
};

static int __init test_hca_init(void)
{
	int err;

	/* Unbound, with many workers: a removal that is blocked must not hold up another one. */
	removals = alloc_workqueue(KBUILD_MODNAME, WQ_UNBOUND, WQ_MAX_ACTIVE);
	if (!removals)
		return -ENOMEM;
	err = bus_register(&parent_bus);
	if (err)
		goto no_bus;
	parent_root = root_device_register(KBUILD_MODNAME);
	if (IS_ERR(parent_root)) {
		err = PTR_ERR(parent_root);
		goto no_root;
	}
	err = pci_register_driver(&function_driver);
	if (err)
		goto no_driver;
	err = misc_register(&control);
	if (err)
		goto no_control;
	return 0;

no_control:
	pci_unregister_driver(&function_driver);
no_driver:
	root_device_unregister(parent_root);
no_root:
	bus_unregister(&parent_bus);
no_bus:
	destroy_workqueue(removals);
	return err;
}

static void __exit test_hca_exit(void)
{
	/* Nobody has the control device open. Otherwise the module would be in use. */
	misc_deregister(&control);
	pci_unregister_driver(&function_driver);
	plan_drop_all();
	hca_del_all();
	destroy_workqueue(removals);
	wait_event(hcas_changed, !atomic_read(&parents));
	/* Waits until the last release function has returned. */
	synchronize_rcu();
	root_device_unregister(parent_root);
	bus_unregister(&parent_bus);
}

module_init(test_hca_init);
module_exit(test_hca_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("RDMA devices that come and go on command, for tests");
