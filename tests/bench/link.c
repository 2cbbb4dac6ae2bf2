/* The benchmark's link: joins hosts of the lab with a chosen delay and rate, and counts what passes.
 *
 * Owns one tun device in the network namespace of each host. The first host is the client; the others are behind its
 * uplink, which is what has the rate and the delay: packets from it share one lane, packets to it another. Others
 * cannot reach each other. Addresses and routes are the caller's business: host number N is whatever has N as the last
 * byte of its IPv4 address.
 *
 *   link PID...                 one process of each host: number 1 is the client, numbers 2 and on the others
 *
 * It takes commands on its standard input, one a line, and ends with it:
 *
 *   set DELAY_US MBIT           one-way delay and rate of both lanes from now on
 *   zero                        forget what was counted
 *   count                       print "BYTES_FROM_CLIENT BYTES_TO_CLIENT CONNECTIONS DROPPED TURNS"
 *
 * A turn: the client sends data on a connection after data has come to it. Not all of them are waited for.
 *
 * Every command is answered with one line; `ready` and `ok` for those that have nothing to tell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HOSTS = 16, MAX_PACKET = 9216, BATCH = 256 };

/* What waits longer than this at the bottleneck is dropped: the buffer of a decent router. */
static const long QUEUE_NS = 100 * 1000000L;

struct packet {
  struct packet *next;
  long due;
  int to, size;
  unsigned char bytes[];
};

/* Packets in the order they leave; all have the same delay, so that is the order they arrive. */
struct lane {
  struct packet *first, **end;
  long free_at;
  unsigned long long bytes;
};

static struct lane up, down;
static int hosts, device[MAX_HOSTS];
static long delay_ns;
static double ns_per_byte;
static unsigned long long connections, dropped, turns;

/* For each host and port of the client: whether the last data on that connection came to the client. */
static unsigned char has_heard[MAX_HOSTS][65536];

static void die(const char *what) {
  fprintf(stderr, "link: %s: %s\n", what, strerror(errno));
  exit(1);
}

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* A tun device "link0" in the network namespace of this process; the descriptor works from any namespace. */
static int open_device(const char *pid) {
  char path[64];
  struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI, .ifr_name = "link0"};
  int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
  int there = open(path, O_RDONLY | O_CLOEXEC);
  if (home < 0 || there < 0) die(path);
  if (setns(there, CLONE_NEWNET)) die("enter the network namespace");
  int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (tun < 0) die("/dev/net/tun");
  if (ioctl(tun, TUNSETIFF, &request)) die("make a tun device");
  if (setns(home, CLONE_NEWNET)) die("leave the network namespace");
  close(there);
  close(home);
  return tun;
}

/* The first packet of a TCP connection: SYN without ACK. */
static int opens_connection(const unsigned char *ip, int size) {
  int header = (ip[0] & 15) * 4;
  return ip[9] == 6 && size >= header + 20 && (ip[header + 13] & 0x12) == 0x02;
}

/* The client's port of a TCP packet with data, or -1. */
static int data_port(const unsigned char *ip, int size, int to_client) {
  int header = (ip[0] & 15) * 4;
  if (ip[9] != 6 || size < header + 20 || size <= header + (ip[header + 12] >> 4) * 4) return -1;
  const unsigned char *port = ip + header + (to_client ? 2 : 0);
  return port[0] << 8 | port[1];
}

static void take(int from) {
  static unsigned char bytes[MAX_PACKET];
  struct lane *lane = from == 0 ? &up : &down;
  for (int i = 0; i < BATCH; i++) {
    int size = read(device[from], bytes, sizeof bytes);
    if (size < 20 || bytes[0] >> 4 != 4) {
      if (size < 0) return;
      continue; /* IPv6 chatter */
    }
    int to = bytes[19] - 1;
    if (to < 0 || to >= hosts || (from == 0) == (to == 0)) continue;
    long time = now();
    if (lane->free_at < time) lane->free_at = time;
    if (lane->free_at - time > QUEUE_NS) {
      dropped++;
      continue;
    }
    lane->free_at += (long)(size * ns_per_byte);
    lane->bytes += size;
    if (from == 0) {
      connections += opens_connection(bytes, size);
      int port = data_port(bytes, size, 0);
      if (port >= 0 && has_heard[to][port]) {
        has_heard[to][port] = 0;
        turns++;
      }
    }
    struct packet *packet = malloc(sizeof *packet + size);
    if (!packet) die("memory");
    *packet = (struct packet){.due = lane->free_at + delay_ns, .to = to, .size = size};
    memcpy(packet->bytes, bytes, size);
    *lane->end = packet;
    lane->end = &packet->next;
  }
}

static void give(struct lane *lane) {
  long time = now();
  for (struct packet *packet; (packet = lane->first) && packet->due <= time; free(packet)) {
    if (!(lane->first = packet->next)) lane->end = &lane->first;
    int port = packet->to == 0 ? data_port(packet->bytes, packet->size, 1) : -1;
    int from = packet->bytes[15] - 1;
    if (port >= 0 && from >= 0 && from < MAX_HOSTS) has_heard[from][port] = 1;
    if (write(device[packet->to], packet->bytes, packet->size) < 0) dropped++;
  }
}

static void obey(const char *line) {
  long delay_us;
  double mbit;
  if (sscanf(line, "set %ld %lf", &delay_us, &mbit) == 2 && delay_us >= 0 && mbit > 0) {
    delay_ns = delay_us * 1000;
    ns_per_byte = 8000.0 / mbit;
    puts("ok");
  } else if (!strcmp(line, "zero")) {
    up.bytes = down.bytes = connections = dropped = turns = 0;
    puts("ok");
  } else if (!strcmp(line, "count")) {
    printf("%llu %llu %llu %llu %llu\n", up.bytes, down.bytes, connections, dropped, turns);
  } else {
    fprintf(stderr, "link: no such command: %s\n", line);
    exit(2);
  }
  fflush(stdout);
}

/* Commands come whole, one at a time: the other side waits for each answer. */
static void read_command(void) {
  char line[256];
  ssize_t size = read(0, line, sizeof line - 1);
  if (size <= 0) exit(0);
  line[size] = 0;
  line[strcspn(line, "\n")] = 0;
  obey(line);
}

int main(int count, char **pids) {
  if (count < 3 || count > MAX_HOSTS + 1) {
    fprintf(stderr, "usage: link PID PID...\n");
    return 2;
  }
  hosts = count - 1;
  up.end = &up.first;
  down.end = &down.first;
  ns_per_byte = 8.0;
  struct pollfd ready[MAX_HOSTS + 2];
  for (int i = 0; i < hosts; i++) ready[i] = (struct pollfd){device[i] = open_device(pids[i + 1]), POLLIN, 0};
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  ready[hosts] = (struct pollfd){timer, POLLIN, 0};
  ready[hosts + 1] = (struct pollfd){0, POLLIN, 0};
  puts("ready");
  fflush(stdout);
  for (;;) {
    long due = 0;
    if (up.first) due = up.first->due;
    if (down.first && (!due || down.first->due < due)) due = down.first->due;
    struct itimerspec alarm = {.it_value = {due / 1000000000L, due % 1000000000L}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &alarm, NULL);
    if (poll(ready, hosts + 2, -1) < 0 && errno != EINTR) die("poll");
    for (int i = 0; i < hosts; i++)
      if (ready[i].revents & POLLIN) take(i);
    give(&up);
    give(&down);
    if (ready[hosts + 1].revents) read_command();
  }
}
