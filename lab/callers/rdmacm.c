// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A program on librdmacm, which opens devices by itself. For each line on its standard input it prints one:
 *   devices      rdma_get_devices(3): "devices", and NAME=GUID of each, or NAME=gone
 *   talk A B     sends data from the device with address A to that with address B and back, over rsocket(7): "talked"
 * If something fails, it prints "failed", what, and the errno.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct ibv_device;

/* struct ibv_context, as far as it is public and used here. */
struct ibv_context {
	struct ibv_device *device;
};

/* struct ibv_device_attr, as far as its GUID; the rest is room. */
struct attr {
	char fw_ver[64];
	uint64_t node_guid;
	char rest[512];
};

const char *ibv_get_device_name(struct ibv_device *device);
int ibv_query_device(struct ibv_context *context, struct attr *attr);
struct ibv_context **rdma_get_devices(int *count);
void rdma_free_devices(struct ibv_context **list);
int rsocket(int domain, int type, int protocol);
int rbind(int socket, const struct sockaddr *addr, socklen_t length);
int rlisten(int socket, int backlog);
int raccept(int socket, struct sockaddr *addr, socklen_t *length);
int rconnect(int socket, const struct sockaddr *addr, socklen_t length);
ssize_t rsend(int socket, const void *bytes, size_t length, int flags);
ssize_t rrecv(int socket, void *bytes, size_t length, int flags);
int rclose(int socket);

enum { PORT = 7471, LENGTH = 4096 };

static void devices(void)
{
	int count, number;
	struct ibv_context **list = rdma_get_devices(&count);

	if (!list) {
		printf("failed rdma_get_devices %d\n", errno);
		return;
	}
	printf("devices");
	for (number = 0; number < count; number++) {
		const char *name = ibv_get_device_name(list[number]->device);
		struct attr attr;

		memset(&attr, 0, sizeof(attr));
		if (ibv_query_device(list[number], &attr))
			printf(" %s=gone", name);
		else
			printf(" %s=%016" PRIx64, name, be64toh(attr.node_guid));
	}
	putchar('\n');
	rdma_free_devices(list);
}

static struct sockaddr_in at(const char *address, int port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, address, &in.sin_addr);
	return in;
}

/* All of it, in one direction. */
static int transfer(int socket, char *bytes, ssize_t (*move)(int, char *, size_t))
{
	size_t done = 0;

	while (done < LENGTH) {
		ssize_t moved = move(socket, bytes + done, LENGTH - done);

		if (moved <= 0)
			return -1;
		done += moved;
	}
	return 0;
}

static ssize_t sends(int socket, char *bytes, size_t length)
{
	return rsend(socket, bytes, length, 0);
}

static ssize_t receives(int socket, char *bytes, size_t length)
{
	return rrecv(socket, bytes, length, 0);
}

/* Sends back what it receives. */
static void *echo(void *listening)
{
	char bytes[LENGTH];
	int socket = raccept(*(int *)listening, NULL, NULL);

	if (socket < 0)
		return "raccept";
	if (transfer(socket, bytes, receives) || transfer(socket, bytes, sends))
		return "the echo";
	rclose(socket);
	return NULL;
}

/* Returns what failed. */
static const char *talk_on(int server, int client, const char *from, const char *to)
{
	struct sockaddr_in source = at(from, 0), target = at(to, PORT);
	char sent[LENGTH], back[LENGTH];
	void *failed = NULL;
	pthread_t thread;
	int number;

	if (rbind(server, (struct sockaddr *)&target, sizeof(target)))
		return "rbind of the server";
	if (rlisten(server, 1))
		return "rlisten";
	if (rbind(client, (struct sockaddr *)&source, sizeof(source)))
		return "rbind of the client";
	for (number = 0; number < LENGTH; number++)
		sent[number] = (char)(number * 7);
	errno = pthread_create(&thread, NULL, echo, &server);
	if (errno)
		return "pthread_create";
	/* The program ends if one of these fails, so the thread may wait. */
	if (rconnect(client, (struct sockaddr *)&target, sizeof(target)))
		return "rconnect";
	if (transfer(client, sent, sends) || transfer(client, back, receives))
		return "the transfer";
	pthread_join(thread, &failed);
	if (!failed && memcmp(sent, back, LENGTH))
		return "the comparison";
	return failed;
}

static int talk(const char *from, const char *to)
{
	int server = rsocket(AF_INET, SOCK_STREAM, 0), client = rsocket(AF_INET, SOCK_STREAM, 0);
	const char *failed = "rsocket";

	if (server >= 0 && client >= 0)
		failed = talk_on(server, client, from, to);
	if (failed) {
		printf("failed %s %d\n", failed, errno);
		return 1;
	}
	rclose(client);
	rclose(server);
	puts("talked");
	return 0;
}

int main(void)
{
	char line[128], from[64], to[64];

	while (fgets(line, sizeof(line), stdin)) {
		int failed = 0;

		if (sscanf(line, "talk %63s %63s", from, to) == 2)
			failed = talk(from, to);
		else
			devices();
		fflush(stdout);
		if (failed)
			return 1;
	}
	return 0;
}
