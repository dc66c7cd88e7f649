/* The benchmark's load client: keep-alive connections that send canned requests and read the
 * answers, whole or as event streams. One thread, one epoll.
 *
 *     load PORT CONNECTIONS RATE SECONDS REQUEST_FILE...
 *
 * Each connection sends its request (the files in turn), reads the answer to its end and sends the
 * next. RATE 0: at once. RATE > 0: that many requests a second over all connections, at their times
 * (a request that finds no idle connection waits and its wait counts). At most OPENING_MAX
 * connections wait for a first byte while the load builds up.
 *
 * Each line on standard input prints one line of JSON: the counters since the start and the times to
 * first byte since the line before. The end of standard input, or SECONDS, ends the program.
 * Connects to 127.0.0.1 only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { NO_FRAMING = -1, CHUNKED = -2 };
enum { EVENTS_PER_WAIT = 256, FILES_MAX = 16, OPENING_MAX = 256, TIMES_MAX = 1 << 20, READ_MAX = 1 << 18 };
enum phase { CLOSED, IDLE, SENT, HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, LAST_CRLF };

struct connection {
    int fd, status, line_length, newlines, served;
    enum phase phase;
    long left;
    long long sent_ns;
    char line[1024]; /* the header or chunk-size line that is being read */
};
static struct connection *connections;
static int connection_count, epoll_fd, port, opening;
static char *requests[FILES_MAX];
static long request_lengths[FILES_MAX];
static int request_count;
static long responses, events_seen, errors, reconnects, streaming;
static char first_error[256];
static float times_us[TIMES_MAX];
static int times_length;
static struct connection **idle; /* a ring: whoever waits longest is asked first */
static long idle_in, idle_out;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void note_error(const char *what, const char *detail) {
    if (!errors++) snprintf(first_error, sizeof first_error, "%s %.200s", what, detail);
}

static void rest(struct connection *c) {
    idle[idle_in++ % connection_count] = c;
}

static void hang_up(struct connection *c) {
    if (c->phase == SENT) opening--;
    if (c->phase > SENT) streaming--;
    close(c->fd);
    c->phase = CLOSED;
}

static int dial(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        note_error("connect", strerror(errno));
        close(c->fd);
        return 0;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    c->served = 0;
    return 1;
}

/* The connection ended. A proxy may close an idle one at any time, also as we ask: asked again. */
static void lost(struct connection *c) {
    if (c->phase == SENT && c->served) reconnects++;
    else if (c->phase >= SENT) note_error("cut", "the connection ended within an answer");
    if (c->phase >= SENT) rest(c);
    hang_up(c);
}

/* Send the request of this connection; `since_ns`: when it was due. */
static void ask(struct connection *c, long long since_ns) {
    int which = (int)(c - connections) % request_count;
    if (c->phase == CLOSED && !dial(c)) return;
    c->phase = SENT;
    opening++;
    c->sent_ns = since_ns;
    c->line_length = 0;
    if (send(c->fd, requests[which], request_lengths[which], MSG_NOSIGNAL) != request_lengths[which]) lost(c);
}

/* A refusal is one error; its text tells why. */
static void check_status(struct connection *c, const char *body, long length) {
    char text[256];
    if (c->status == 200) return;
    snprintf(text, sizeof text, "%d %.*s", c->status, length < 180 ? (int)length : 180, body);
    note_error("answered", text);
    c->status = 200;
}

/* ---- reading an answer -------------------------------------------------------------------- */

static void finish(struct connection *c) {
    check_status(c, "", 0);
    responses++;
    streaming--;
    c->served++;
    c->phase = IDLE;
    rest(c);
}

static void end_of_line(struct connection *c) {
    c->line[c->line_length] = 0;
    if (c->phase == CHUNK_SIZE) {
        c->left = strtol(c->line, NULL, 16);
        c->phase = c->left ? CHUNK : LAST_CRLF;
    } else if (!strncmp(c->line, "HTTP/1.", 7)) {
        c->status = atoi(c->line + 9);
        c->left = NO_FRAMING;
    } else if (!strncasecmp(c->line, "content-length:", 15)) {
        c->left = atol(c->line + 15);
    } else if (!strncasecmp(c->line, "transfer-encoding:", 18)) {
        c->left = CHUNKED;
    } else if (!c->line_length) {
        if (c->left == NO_FRAMING) note_error("answer", "without Content-Length and not chunked");
        if (c->left == 0) finish(c);
        else c->phase = c->left == CHUNKED ? CHUNK_SIZE : LENGTH;
    }
    c->line_length = 0;
}

/* One blank line ends one event, wherever the reads cut it. */
static void count_events(struct connection *c, const char *bytes, long length) {
    for (const char *end = bytes + length; bytes < end; bytes++) {
        if (*bytes == '\n' && ++c->newlines == 2) events_seen++;
        if (*bytes != '\n') c->newlines = 0;
    }
}

static void read_answer(struct connection *c, const char *at, long length) {
    const char *end = at + length;
    while (at < end && c->phase >= SENT) {
        if (c->phase == CHUNK || c->phase == LENGTH) {
            long take = end - at < c->left ? end - at : c->left;
            check_status(c, at, take);
            count_events(c, at, take);
            at += take;
            if (!(c->left -= take)) {
                if (c->phase == LENGTH) finish(c);
                else c->phase = CHUNK_END;
            }
        } else if (c->phase == CHUNK_END || c->phase == LAST_CRLF) {
            if (*at++ != '\n') continue;
            if (c->phase == LAST_CRLF) finish(c);
            else c->phase = CHUNK_SIZE;
        } else if (*at == '\n') {
            at++;
            end_of_line(c);
        } else {
            if (*at != '\r' && c->line_length < (int)sizeof c->line - 1) c->line[c->line_length++] = *at;
            at++;
        }
    }
}

static void hear(struct connection *c) {
    static char bytes[READ_MAX];
    long got = recv(c->fd, bytes, sizeof bytes, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { lost(c); return; }
    if (c->phase == IDLE) note_error("answer", "bytes behind its end");
    if (c->phase == SENT) {
        opening--;
        streaming++;
        c->phase = HEAD;
        c->newlines = 0;
        if (times_length < TIMES_MAX) times_us[times_length++] = (float)(now_ns() - c->sent_ns) / 1000;
    }
    read_answer(c, bytes, got);
}

/* ---- the marks ---------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(int per_mille) {
    return times_length ? times_us[(long)(times_length - 1) * per_mille / 1000] : 0;
}

static void report(void) {
    qsort(times_us, times_length, sizeof *times_us, by_size);
    printf("{\"ns\":%lld,\"responses\":%ld,\"events\":%ld,\"errors\":%ld,\"reconnects\":%ld,\"open\":%ld,"
           "\"first_byte_us\":{\"n\":%d,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f},\"first_error\":\"",
           now_ns(), responses, events_seen, errors, reconnects, streaming, times_length,
           percentile(500), percentile(990), percentile(1000));
    for (const char *at = first_error; *at; at++) putchar(*at < ' ' || *at == '"' || *at == '\\' ? '?' : *at);
    printf("\"}\n");
    fflush(stdout);
    times_length = 0;
}

/* One report for each line heard; 0 at the end of input. */
static int obey(void) {
    char bytes[256];
    long got = read(STDIN_FILENO, bytes, sizeof bytes);
    for (long i = 0; i < got; i++)
        if (bytes[i] == '\n') report();
    return got > 0;
}

/* ---- the main loop ------------------------------------------------------------------------ */

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    char *bytes = malloc(1 << 16);
    request_lengths[request_count] = (long)fread(bytes, 1, 1 << 16, file);
    requests[request_count++] = bytes;
    fclose(file);
}

static void watch(int fd, void *tag) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = tag};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void set_timer(int timer, long long due_ns) {
    struct itimerspec when = {.it_value = {due_ns / 1000000000LL, due_ns % 1000000000LL}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Ask whoever is idle, as far as the rate and the opening limit allow; the next due time or 0. */
static long long ask_idle(long long due_ns, long long every_ns) {
    while (idle_in > idle_out && opening < OPENING_MAX) {
        long long now = now_ns();
        if (every_ns && due_ns > now) return due_ns;
        ask(idle[idle_out++ % connection_count], every_ns ? due_ns : now);
        due_ns += every_ns;
    }
    return due_ns;
}

int main(int argc, char **argv) {
    if (argc < 6 || argc > 5 + FILES_MAX) {
        fprintf(stderr, "usage: load PORT CONNECTIONS RATE SECONDS REQUEST_FILE...\n");
        return 2;
    }
    port = atoi(argv[1]);
    connection_count = atoi(argv[2]);
    long long every_ns = atof(argv[3]) > 0 ? (long long)(1e9 / atof(argv[3])) : 0;
    long long due_ns = now_ns(), end_ns = due_ns + atoll(argv[4]) * 1000000000LL;
    for (int i = 5; i < argc; i++) read_request(argv[i]);
    connections = calloc(connection_count, sizeof *connections);
    idle = calloc(connection_count, sizeof *idle);
    for (int i = 0; i < connection_count; i++) rest(&connections[i]);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_fd = epoll_create1(0);
    watch(STDIN_FILENO, NULL);
    watch(timer, &timer);
    struct epoll_event events[EVENTS_PER_WAIT];
    while (now_ns() < end_ns) {
        due_ns = ask_idle(due_ns, every_ns);
        if (every_ns) set_timer(timer, idle_in > idle_out ? due_ns : 0);
        int count = epoll_wait(epoll_fd, events, EVENTS_PER_WAIT, 1000);
        for (int i = 0; i < count; i++) {
            void *tag = events[i].data.ptr;
            if (!tag && !obey()) return 0;
            if (tag && tag != &timer) hear(tag);
        }
    }
    return 0;
}
