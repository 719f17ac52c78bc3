/* load.c - a load generator that understands SSE and the stamps of mock.c.
 *
 *   cc -O2 -o load load.c && ./load --port 9000 --body FILE [--path /v1/chat/completions]
 *                                   [--conns 1] [--seconds 5] [--warm 1] [--stamps N] [--repeats 1] [--stream 0|1] [--end TEXT] [--once 0|1]
 *
 * A closed loop: each connection sends its next request as soon as the answer to the last one is whole. With
 * --once each sends a single request, and the end is when all were answered, at the latest after --seconds.
 * Prints "measuring" when the warm-up is over, and one JSON line at the end. Latencies are microseconds:
 *   first  from the request to the first byte of the body
 *   total  from the request to the end of the answer
 *   chunk  from the stamp (written by the mock) to its arrival here
 * "held" is the greatest number of answers that had begun, and were not over, at one time.
 *
 * An answer is "wrong" when it does not hold exactly N stamps, or, streamed, not exactly one end, or fewer
 * events than stamps (each of which a right answer says `repeats` times): chunks that were lost, doubled or melted together.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    float *us;
    size_t n, cap;
} Samples;

typedef enum { HEAD, BODY, CHUNK_SIZE, CHUNK_END, TRAILER } Part;
typedef enum { MORE, WHOLE, NONSENSE } Progress;

typedef struct {
    int fd;
    bool busy, chunked, close_after, got_body;
    Part part;
    int status;
    uint64_t started, left; /* left: bytes of the body, or of this chunk */
    char line[8192];
    int line_len;
    int matched; /* letters of "data: [DONE]" at the start of this line, -1: this line is another */
    int events, dones, stamps;
    int digits; /* of a stamp under way, -1: none */
    uint64_t stamp;
} Conn;

static const uint64_t TO_THE_END = ~0ull;

static int epoll_fd, port = 9000, want_stamps = -1, repeats = 1;
static const char *done = "data: [DONE]"; /* how the line begins that ends a stream */
static bool want_stream, measuring, once;
static int waiting, under_way, held; /* waiting: with --once, for the answers of so many connections */
static char *request;
static size_t request_len;
static Samples first, total, chunk;
static uint64_t ok, bad, reset, wrong, events;
static char complaint[300];

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* ---- samples ---------------------------------------------------------------------------------------- */

static void add(Samples *s, uint64_t ns) {
    if (!measuring) return;
    if (s->n == s->cap) s->us = realloc(s->us, (s->cap = s->cap * 2 + 1024) * sizeof *s->us);
    s->us[s->n++] = ns / 1000.0;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *s) {
    if (!s->n) return;
    qsort(s->us, s->n, sizeof *s->us, by_size);
    printf(",\"%s\":{\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, s->us[s->n / 2],
           s->us[s->n * 9 / 10], s->us[s->n * 99 / 100], s->us[s->n - 1]);
}

/* ---- one request ------------------------------------------------------------------------------------ */

static void dial(Conn *c) {
    int one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (void *)&address, sizeof address)) {
        perror("load: connect");
        exit(1);
    }
    struct epoll_event e = {EPOLLIN, {.ptr = c}};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void redial(Conn *c) {
    close(c->fd);
    dial(c);
}

static void send_request(Conn *c) {
    *c = (Conn){.fd = c->fd, .busy = true, .digits = -1, .started = now()};
    for (size_t sent = 0; sent < request_len;) {
        ssize_t k = send(c->fd, request + sent, request_len - sent, MSG_NOSIGNAL);
        if (k <= 0) break; /* recv() will tell why */
        sent += k;
    }
}

static bool is_right(Conn *c) {
    if (want_stamps >= 0 && c->stamps != want_stamps) return false;
    return !want_stream || (c->dones == 1 && c->events * repeats > c->stamps);
}

static void finish(Conn *c, bool whole) {
    c->busy = false;
    under_way -= c->got_body;
    if (!measuring) return;
    if (!whole || c->status != 200) bad++;
    else if (is_right(c)) {
        ok++;
        add(&total, now() - c->started);
    } else {
        wrong++;
        if (!complaint[0])
            snprintf(complaint, sizeof complaint, "%d stamps, %d events, %d ends", c->stamps, c->events, c->dones);
    }
}

/* ---- reading an answer ------------------------------------------------------------------------------ */

static void count_events(Conn *c, const char *p, const char *end) {
    while (p < end) {
        if (c->matched < 0) { /* skip the rest of the line */
            p = memchr(p, '\n', end - p);
            if (!p) return;
            c->matched = 0;
            p++;
        } else if (*p == done[c->matched]) {
            p++;
            c->matched++;
            if (c->matched == 5) {
                c->events++;
                if (measuring) events++;
            } else if (c->matched == (int)strlen(done)) {
                c->dones++;
                c->matched = -1;
            }
        } else c->matched = -1;
    }
}

/* A stamp may be cut in two by the network; its digits are collected in the connection. */
static void read_stamps(Conn *c, const char *p, const char *end, uint64_t t) {
    while (p < end) {
        if (c->digits < 0) {
            p = memchr(p, '@', end - p);
            if (!p) return;
            p++;
            c->digits = 0;
            c->stamp = 0;
        } else if (c->digits < 16 && *p >= '0' && *p <= '9') {
            c->stamp = c->stamp * 10 + (*p++ - '0');
            c->digits++;
        } else {
            if (c->digits == 16 && *p == '@') {
                p++;
                c->stamps++;
                if (t > c->stamp * 10) add(&chunk, t - c->stamp * 10);
            }
            c->digits = -1;
        }
    }
}

static void read_body(Conn *c, const char *p, size_t n, uint64_t t) {
    if (!c->got_body && n) add(&first, t - c->started);
    if (!c->got_body && ++under_way > held) held = under_way;
    c->got_body = true;
    if (c->status != 200 && !complaint[0])
        snprintf(complaint, sizeof complaint, "%d: %.*s", c->status, (int)(n < 200 ? n : 200), p);
    read_stamps(c, p, p + n, t);
    count_events(c, p, p + n);
}

static Progress end_of_head(Conn *c) {
    if (c->status == 100) return MORE;
    c->part = c->chunked ? CHUNK_SIZE : BODY;
    if (c->chunked || c->left) return MORE;
    if (!c->close_after) return WHOLE;
    c->left = TO_THE_END;
    return MORE;
}

static Progress read_line(Conn *c) {
    bool blank = c->line[0] == '\r' || c->line[0] == '\n';
    if (c->part == CHUNK_SIZE) {
        c->left = strtoull(c->line, NULL, 16);
        c->part = c->left ? BODY : TRAILER;
    } else if (c->part == CHUNK_END) c->part = CHUNK_SIZE;
    else if (c->part == TRAILER) return blank ? WHOLE : MORE;
    else if (blank) return end_of_head(c);
    else if (!strncmp(c->line, "HTTP/1.", 7)) c->status = atoi(c->line + 9);
    else if (!strncasecmp(c->line, "content-length:", 15)) c->left = strtoull(c->line + 15, NULL, 10);
    else if (!strncasecmp(c->line, "transfer-encoding:", 18)) c->chunked = true;
    else if (!strncasecmp(c->line, "connection: close", 17)) c->close_after = true;
    return MORE;
}

static Progress feed(Conn *c, const char *p, size_t n, uint64_t t) {
    for (const char *end = p + n; p < end;) {
        if (c->part == BODY) {
            size_t k = c->left < (uint64_t)(end - p) ? c->left : (size_t)(end - p);
            read_body(c, p, k, t);
            p += k;
            c->left -= k;
            if (c->left) continue;
            if (!c->chunked) return WHOLE;
            c->part = CHUNK_END;
        } else {
            const char *newline = memchr(p, '\n', end - p);
            size_t k = (newline ? newline + 1 : end) - p;
            if (c->line_len + k >= sizeof c->line) return NONSENSE;
            memcpy(c->line + c->line_len, p, k);
            c->line_len += k;
            c->line[c->line_len] = 0;
            p += k;
            if (!newline) break;
            c->line_len = 0;
            Progress progress = read_line(c);
            if (progress != MORE) return progress;
        }
    }
    return MORE;
}

static void go_on(Conn *c, bool anew) {
    if (once) {
        waiting--;
        close(c->fd);
        return;
    }
    if (anew) redial(c);
    send_request(c);
}

static void closed_by_server(Conn *c) {
    bool whole = c->busy && c->left > TO_THE_END / 2; /* an answer without a length ends like this */
    if (whole) finish(c, true);
    else {
        under_way -= c->got_body;
        if (c->busy && measuring) reset++;
    }
    go_on(c, true);
}

static void receive(Conn *c) {
    static char bytes[1 << 18];
    ssize_t k = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (k < 0 && errno == EAGAIN) return;
    if (k <= 0) return closed_by_server(c);
    Progress progress = feed(c, bytes, k, now());
    if (progress == MORE) return;
    finish(c, progress == WHOLE);
    go_on(c, progress == NONSENSE || c->close_after);
}

/* ---- the run ---------------------------------------------------------------------------------------- */

static void build_request(const char *path, const char *body_file, const char *api_key, const char *headers) {
    FILE *f = fopen(body_file, "rb");
    if (!f) {
        perror(body_file);
        exit(1);
    }
    static char body[1 << 20];
    size_t n = fread(body, 1, sizeof body, f);
    fclose(f);
    char *head;
    int head_len = asprintf(&head,
                            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: application/json, text/event-stream\r\n"
                            "Authorization: Bearer %s\r\nContent-Type: application/json\r\n"
                            "%sContent-Length: %zu\r\n\r\n",
                            path, port, api_key, headers, n);
    request_len = head_len + n;
    request = malloc(request_len);
    memcpy(request, head, head_len);
    memcpy(request + head_len, body, n);
}

static void report(int conns, double seconds) {
    printf("{\"conns\":%d,\"seconds\":%.3f,\"ok\":%lu,\"bad\":%lu,\"reset\":%lu,\"wrong\":%lu,\"events\":%lu,"
           "\"held\":%d", conns, seconds, ok, bad, reset, wrong, events, held);
    print_samples("total", &total);
    print_samples("first", &first);
    print_samples("chunk", &chunk);
    printf(",\"complaint\":\"");
    for (char *s = complaint; *s; s++) putchar(*s == '"' || *s == '\\' || *s < 32 ? '\'' : *s);
    printf("\"}\n");
}

int main(int argc, char **argv) {
    int conns = 1;
    double seconds = 5, warm = 1;
    const char *path = "/v1/chat/completions", *body_file = "/dev/null", *api_key = "sk-bench", *headers = "";
    for (int i = 1; i + 1 < argc; i += 2) {
        char *key = argv[i], *value = argv[i + 1];
        if (!strcmp(key, "--port")) port = atoi(value);
        else if (!strcmp(key, "--path")) path = value;
        else if (!strcmp(key, "--body")) body_file = value;
        else if (!strcmp(key, "--key")) api_key = value;
        else if (!strcmp(key, "--headers")) headers = value;  // whole lines
        else if (!strcmp(key, "--conns")) conns = atoi(value);
        else if (!strcmp(key, "--seconds")) seconds = atof(value);
        else if (!strcmp(key, "--warm")) warm = atof(value);
        else if (!strcmp(key, "--stamps")) want_stamps = atoi(value);
        else if (!strcmp(key, "--repeats")) repeats = atoi(value);
        else if (!strcmp(key, "--end")) done = value;
        else if (!strcmp(key, "--stream")) want_stream = atoi(value);
        else if (!strcmp(key, "--once")) once = atoi(value);
        else return fprintf(stderr, "load: unknown option %s\n", key), 2;
    }
    signal(SIGPIPE, SIG_IGN);
    build_request(path, body_file, api_key, headers);
    epoll_fd = epoll_create1(0);
    Conn *all = calloc(conns, sizeof *all);
    for (int i = 0; i < conns; i++) dial(&all[i]);
    for (int i = 0; i < conns; i++) send_request(&all[i]);

    uint64_t from = now() + warm * 1e9, until = from + seconds * 1e9;
    struct epoll_event ready[256];
    waiting = conns;
    for (uint64_t t; (t = now()) < until && waiting;) {
        if (!measuring && t >= from) {
            measuring = true;
            from = t;
            puts("measuring");
            fflush(stdout);
        }
        uint64_t wait = (measuring ? until : from) - t;
        struct timespec timeout = {wait / 1000000000ull, wait % 1000000000ull};
        int n = epoll_pwait2(epoll_fd, ready, 256, &timeout, NULL);
        for (int i = 0; i < n; i++) receive(ready[i].data.ptr);
    }
    report(conns, (now() - from) / 1e9);
    return 0;
}
