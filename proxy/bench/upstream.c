/* The benchmark's upstream: an HTTP/1.1 server that answers like a chat completions vendor, far
 * faster than any proxy in front of it. One thread, one epoll, no allocation per request.
 *
 *     upstream PORT [TLS_PORT CERT KEY]
 *
 * A request without "stream":true gets one JSON answer of about 1 KB with usage. One with it gets
 * "@chunks N @every_us T" from its own text: N events, one each T microseconds, each its own write
 * and its own HTTP chunk, then the last events, [DONE] and the end. "include_usage":true adds
 * "usage":null to every event and the usage event before [DONE], as OpenAI does.
 *
 * TLS is the system's libssl, opened at run time with the few prototypes below, so that no
 * development package is needed. Listens on 127.0.0.1 only; ends when its standard input does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST_MAX = 16384, CONNECTIONS_MAX = 65536, EVENTS_PER_WAIT = 256, TLS_WANT_READ = 2 };

/* ---- libssl, by hand ---------------------------------------------------------------------- */

static struct {
    void *(*TLS_server_method)(void);
    void *(*SSL_CTX_new)(void *);
    int (*SSL_CTX_use_certificate_chain_file)(void *, const char *);
    int (*SSL_CTX_use_PrivateKey_file)(void *, const char *, int);
    void *(*SSL_new)(void *);
    int (*SSL_set_fd)(void *, int);
    void (*SSL_set_accept_state)(void *);
    int (*SSL_read)(void *, void *, int);
    int (*SSL_write)(void *, const void *, int);
    int (*SSL_get_error)(void *, int);
    void (*SSL_free)(void *);
    void (*ERR_clear_error)(void);
} tls;
static void *tls_context;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void load_tls(const char *certificate, const char *key) {
    void *library = dlopen("libssl.so.3", RTLD_NOW | RTLD_GLOBAL);
    if (!library) library = dlopen("libssl.so.1.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) { fprintf(stderr, "no libssl on this machine\n"); exit(3); }
#define LOAD(name) if (!(*(void **)&tls.name = dlsym(library, #name))) die(#name)
    LOAD(TLS_server_method); LOAD(SSL_CTX_new); LOAD(SSL_CTX_use_certificate_chain_file);
    LOAD(SSL_CTX_use_PrivateKey_file); LOAD(SSL_new); LOAD(SSL_set_fd); LOAD(SSL_set_accept_state);
    LOAD(SSL_read); LOAD(SSL_write); LOAD(SSL_get_error); LOAD(SSL_free);
    LOAD(ERR_clear_error); /* libcrypto's, which libssl brings along */
    tls_context = tls.SSL_CTX_new(tls.TLS_server_method());
    if (tls.SSL_CTX_use_certificate_chain_file(tls_context, certificate) != 1 ||
        tls.SSL_CTX_use_PrivateKey_file(tls_context, key, 1 /* PEM */) != 1) {
        fprintf(stderr, "cannot use %s and %s\n", certificate, key);
        exit(1);
    }
}

/* ---- what is said ------------------------------------------------------------------------- */

#define ENVELOPE \
    "\"id\":\"chatcmpl-BenchBenchBenchBenchBenchBen\",\"object\":\"chat.completion%s\"," \
    "\"created\":1767225600,\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\"," \
    "\"system_fingerprint\":\"fp_0123456789\","
#define USAGE \
    "\"usage\":{\"prompt_tokens\":212,\"completion_tokens\":%d,\"total_tokens\":%d," \
    "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0}," \
    "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0," \
    "\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}"
#define HEAD \
    "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: %s\r\n" \
    "openai-processing-ms: 412\r\nopenai-version: 2020-10-01\r\n" \
    "x-request-id: req_0123456789abcdef0123456789abcdef\r\n"

static char whole[4096], stream_head[512];
static int whole_length, stream_head_length;
static struct { char bytes[1024]; int length; } opening[2], piece[2]; /* [1]: with "usage":null */

/* One SSE event with `choices`, in its own HTTP chunk. */
static int framed(char *out, const char *choices, const char *usage) {
    char event[1024];
    int length = sprintf(event, "data: {" ENVELOPE "\"choices\":%s%s}\n\n", ".chunk", choices, usage);
    return sprintf(out, "%x\r\n%s\r\n", length, event);
}

static void prepare_answers(void) {
    char body[2048];
    int length = sprintf(body, "{" ENVELOPE "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                         "\"content\":\"", "");
    for (int i = 0; i < 8; i++)
        length += sprintf(body + length, "Measure first, change one thing, then measure again. ");
    length += sprintf(body + length, "\",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,"
                      "\"finish_reason\":\"stop\"}]," USAGE "}", 48, 260);
    whole_length = sprintf(whole, HEAD "Content-Length: %d\r\n\r\n%s", "application/json", length, body);
    stream_head_length = sprintf(stream_head, HEAD "Transfer-Encoding: chunked\r\n\r\n",
                                 "text/event-stream; charset=utf-8");
    for (int with = 0; with < 2; with++) {
        const char *usage = with ? ",\"usage\":null" : "";
        opening[with].length = framed(opening[with].bytes,
            "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},"
            "\"logprobs\":null,\"finish_reason\":null}]", usage);
        piece[with].length = framed(piece[with].bytes,
            "[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]",
            usage);
    }
}

/* ---- connections -------------------------------------------------------------------------- */

struct connection {
    int fd, heap_index; /* -1: not waiting for its time */
    void *ssl;
    long long due_ns, every_ns;
    int chunks_left, chunks, with_usage, filled;
    char request[REQUEST_MAX + 1];
};
static struct connection *connections[CONNECTIONS_MAX];
static struct connection *heap[CONNECTIONS_MAX];
static int heap_length, epoll_fd, timer_fd;

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void heap_put(int at, struct connection *c) {
    heap[at] = c;
    c->heap_index = at;
}

static void heap_sift(int at) {
    struct connection *c = heap[at];
    for (; at && heap[(at - 1) / 2]->due_ns > c->due_ns; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
    for (int child; (child = 2 * at + 1) < heap_length; at = child) {
        if (child + 1 < heap_length && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= c->due_ns) break;
        heap_put(at, heap[child]);
    }
    heap_put(at, c);
}

static void heap_remove(struct connection *c) {
    int at = c->heap_index;
    if (at < 0) return;
    c->heap_index = -1;
    if (at == --heap_length) return;
    heap_put(at, heap[heap_length]);
    heap_sift(at);
}

static void hang_up(struct connection *c) {
    heap_remove(c);
    if (c->ssl) tls.SSL_free(c->ssl);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c);
}

/* Everything or nothing: answers are far smaller than a socket buffer, so a peer that leaves no room
 * has stalled for seconds, and the benchmark counts what it loses. */
static int say(struct connection *c, const char *bytes, int length) {
    if (c->ssl) tls.ERR_clear_error();
    long sent = c->ssl ? tls.SSL_write(c->ssl, bytes, length) : send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent == length) return 1;
    hang_up(c);
    return 0;
}

static long number_after(const char *text, const char *name) {
    const char *at = strstr(text, name);
    return at ? atol(at + strlen(name)) : 0;
}

static int is_true(const char *body, const char *member) {
    const char *at = strstr(body, member);
    if (!at) return 0;
    at += strlen(member);
    return !strncmp(at + strspn(at, ": "), "true", 4);
}

static void end_stream(struct connection *c) {
    char out[4096];
    int length = framed(out, "[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]",
                        c->with_usage ? ",\"usage\":null" : "");
    if (c->with_usage) {
        char usage[512];
        sprintf(usage, "," USAGE, c->chunks, 212 + c->chunks);
        length += framed(out + length, "[]", usage);
    }
    length += sprintf(out + length, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    say(c, out, length);
}

static void begin_stream(struct connection *c, const char *body) {
    char out[2048];
    c->with_usage = is_true(body, "\"include_usage\"");
    c->chunks = c->chunks_left = (int)number_after(body, "@chunks ");
    c->every_ns = number_after(body, "@every_us ") * 1000;
    int length = opening[c->with_usage].length;
    memcpy(out, stream_head, stream_head_length);
    memcpy(out + stream_head_length, opening[c->with_usage].bytes, length);
    if (!say(c, out, stream_head_length + length)) return;
    if (!c->chunks) { end_stream(c); return; }
    /* A random phase: streams of one pace must not march in step. */
    c->due_ns = now_ns() + (c->every_ns ? (long long)(drand48() * (double)c->every_ns) : 0);
    heap_put(heap_length++, c);
    heap_sift(heap_length - 1);
}

static void speak_when_due(struct connection *c) {
    if (!say(c, piece[c->with_usage].bytes, piece[c->with_usage].length)) return;
    c->due_ns += c->every_ns;
    if (--c->chunks_left) { heap_sift(c->heap_index); return; }
    heap_remove(c);
    end_stream(c);
}

/* Answer every whole request in the buffer. Requests carry Content-Length; nobody pipelines. */
static void answer(struct connection *c) {
    c->request[c->filled] = 0;
    char *end = strstr(c->request, "\r\n\r\n");
    if (!end) return;
    char *body = end + 4, *field = strcasestr(c->request, "\r\ncontent-length:");
    long length = field && field < body ? atol(field + 17) : 0;
    if (c->filled < body - c->request + length) return;
    c->filled = 0;
    if (is_true(body, "\"stream\"")) begin_stream(c, body);
    else say(c, whole, whole_length);
}

static void hear(struct connection *c) {
    for (;;) {
        int room = REQUEST_MAX - c->filled;
        /* SSL_get_error looks at the thread's errors first: one connection's would end all the others. */
        if (c->ssl) tls.ERR_clear_error();
        int got = c->ssl ? tls.SSL_read(c->ssl, c->request + c->filled, room)
                         : (int)recv(c->fd, c->request + c->filled, room, 0);
        if (got <= 0) {
            int waits = c->ssl ? tls.SSL_get_error(c->ssl, got) == TLS_WANT_READ : got < 0 && errno == EAGAIN;
            if (!waits) hang_up(c);
            return;
        }
        c->filled += got;
        int fd = c->fd;
        answer(c);
        if (!connections[fd] || !c->ssl) return; /* without TLS epoll tells of the rest */
    }
}

static void welcome(int listener, int is_tls) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = fd < CONNECTIONS_MAX ? calloc(1, sizeof *c) : NULL;
        if (!c) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->heap_index = -1;
        if (is_tls) {
            c->ssl = tls.SSL_new(tls_context);
            tls.SSL_set_fd(c->ssl, fd);
            tls.SSL_set_accept_state(c->ssl);
        }
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 16384)) die("listen");
    watch(fd);
    return fd;
}

/* The timer fires at the earliest due time; the kernel's millisecond waits would bundle chunks. */
static void arm_timer(void) {
    static long long armed;
    long long due = heap_length ? heap[0]->due_ns : 0;
    if (due == armed) return;
    armed = due;
    struct itimerspec when = {.it_value = {due / 1000000000LL, due % 1000000000LL}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

int main(int argc, char **argv) {
    if (argc != 2 && argc != 5) { fprintf(stderr, "usage: upstream PORT [TLS_PORT CERT KEY]\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    prepare_answers();
    if (argc == 5) load_tls(argv[3], argv[4]);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int plain = listen_on(atoi(argv[1])), secure = argc == 5 ? listen_on(atoi(argv[2])) : -1;
    watch(timer_fd);
    watch(STDIN_FILENO);
    struct epoll_event events[EVENTS_PER_WAIT];
    for (;;) {
        arm_timer();
        int count = epoll_wait(epoll_fd, events, EVENTS_PER_WAIT, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) return 0; /* the runner is gone */
            if (fd == plain || fd == secure) welcome(fd, fd == secure);
            else if (fd != timer_fd && connections[fd]) hear(connections[fd]);
        }
        for (long long now = now_ns(); heap_length && heap[0]->due_ns <= now;) speak_when_due(heap[0]);
    }
}
