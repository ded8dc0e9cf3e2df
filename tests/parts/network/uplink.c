/* uplink: a link between two network namespaces with delay, jitter, loss and rate.
 *
 *   uplink NAMESPACE_A INTERFACE_A NAMESPACE_B INTERFACE_B QUALITY
 *
 * Kernels without netem cannot do this by themselves. Each end is a TUN interface; what enters one
 * leaves the other. The file QUALITY has one line, "DELAY_US JITTER_US LOSS_PER_MILLE RATE_KBIT",
 * for each of both ways; 1000 cuts the link and a rate of 0 is none. It is read again at SIGHUP,
 * after everything that was sent before has been judged by the old line. Prints "ready" when both
 * interfaces are there and "quality N" when the file was read for the N-th time. Jitter keeps the
 * order of packets. Of what a rate holds up, a fifth of a second waits and the rest is lost. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
    PACKETS_MAX = 4096, /* under way one way */
    PACKET_MAX = 2048,  /* bytes */
    BATCH = 64,         /* packets that are read before anything is sent */
};

static const long long SECOND = 1000000000;
static const long long WAITS_MAX = SECOND / 5;

struct packet {
    long long due;
    int length;
    unsigned char bytes[PACKET_MAX];
};

struct way {
    struct packet *queue;
    unsigned head, tail;
    long long free_at, last_due;
};

static struct way ways[2];
static struct { double delay, jitter, loss, rate; } quality;
static struct pollfd ends[2];
static volatile sig_atomic_t reload = 1;

static void on_hangup(int signal) {
    (void)signal;
    reload = 1;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* Makes a TUN interface in a namespace; this process stays there. */
static int tun_in(const char *namespace, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", namespace);
    int there = open(path, O_RDONLY | O_CLOEXEC);
    if (there < 0) die(path);
    if (setns(there, CLONE_NEWNET)) die("setns");
    close(there);
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tun < 0) die("/dev/net/tun");
    struct ifreq request;
    memset(&request, 0, sizeof request);
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (ioctl(tun, TUNSETIFF, &request)) die("TUNSETIFF");
    return tun;
}

/* Reads up to so many packets that go one way and decides about each. Returns how many there were. */
static int take(int i, int most) {
    struct way *way = &ways[i];
    long long t = now();
    int count = 0;
    for (; count < most; count++) {
        static struct packet spare;
        int full = way->tail - way->head >= PACKETS_MAX;
        struct packet *packet = full ? &spare : &way->queue[way->tail % PACKETS_MAX];
        packet->length = read(ends[i].fd, packet->bytes, PACKET_MAX);
        if (packet->length <= 0) break;
        if (full || drand48() * 1000 < quality.loss) continue;
        long long leaves = t;
        if (quality.rate > 0) {
            if (way->free_at > leaves) leaves = way->free_at;
            if (leaves - t > WAITS_MAX) continue;
            leaves = way->free_at = leaves + (long long)(packet->length * 8e6 / quality.rate);
        }
        packet->due = leaves + (long long)(1e3 * (quality.delay + drand48() * quality.jitter));
        if (packet->due < way->last_due) packet->due = way->last_due;
        way->last_due = packet->due;
        way->tail++;
    }
    return count;
}

/* Sends what is due one way; returns nanoseconds until the next packet is, or -1 for none. */
static long long give(int i) {
    struct way *way = &ways[i];
    long long t = now();
    while (way->head != way->tail) {
        struct packet *packet = &way->queue[way->head % PACKETS_MAX];
        if (packet->due > t) return packet->due - t;
        /* An interface that is down or full loses what it is given. */
        if (write(ends[!i].fd, packet->bytes, packet->length) < 0 && errno != EAGAIN &&
            errno != EIO && errno != EINVAL && errno != ENOBUFS)
            die("write");
        way->head++;
    }
    return -1;
}

static void read_quality(const char *path, unsigned time) {
    for (int i = 0; i < 2 && time > 1; i++) take(i, PACKETS_MAX);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%lf %lf %lf %lf", &quality.delay, &quality.jitter, &quality.loss,
                        &quality.rate) != 4)
        die(path);
    fclose(file);
    printf("quality %u\n", time);
    fflush(stdout);
}

int main(int count, char **arguments) {
    if (count != 6) {
        fprintf(stderr, "usage: %s NAMESPACE_A INTERFACE_A NAMESPACE_B INTERFACE_B QUALITY\n",
                arguments[0]);
        return 64;
    }
    /* The signal comes only while this process waits, so none is missed before it does. */
    struct sigaction action = { .sa_handler = on_hangup };
    sigset_t hangup, none;
    sigemptyset(&none);
    sigemptyset(&hangup);
    sigaddset(&hangup, SIGHUP);
    sigprocmask(SIG_BLOCK, &hangup, 0);
    sigaction(SIGHUP, &action, 0);

    for (int i = 0; i < 2; i++) {
        ends[i] = (struct pollfd){ tun_in(arguments[1 + 2 * i], arguments[2 + 2 * i]), POLLIN, 0 };
        ways[i].queue = malloc(PACKETS_MAX * sizeof *ways[i].queue);
        if (!ways[i].queue) die("malloc");
    }
    srand48(1);
    puts("ready");
    for (unsigned time = 0;;) {
        if (reload) {
            reload = 0;
            read_quality(arguments[5], ++time);
        }
        long long there = give(0), back = give(1);
        long long next = there < 0 || (back >= 0 && back < there) ? back : there;
        struct timespec wait = { next / SECOND, next % SECOND };
        if (ppoll(ends, 2, next < 0 ? 0 : &wait, &none) < 0 && errno != EINTR) die("ppoll");
        for (int i = 0; i < 2; i++) take(i, BATCH);
    }
}
