/* mock.c - a fast stand-in for the two servers behind Toolway, for measuring only.
 *
 *   an OpenAI-compatible model server   POST /v1/chat/completions, whole and streamed; GET /v1/models
 *   an OpenAPI tool server              GET /openapi.json, POST /op_0, /op_1, ...
 *
 *   cc -O2 -o mock mock.c && ./mock --port 9000 [--tools 20]
 *
 * The name of the model in a request says what the answer is like, e.g. "mock-c100-s200":
 *   c  text chunks of a streamed answer (100)       s  bytes of one streamed event (200)
 *   d  microseconds between two chunks (0)          r  bytes of a whole answer (1000)
 *   t  tool calls in a round (0)                    k  rounds of tool calls before the text (1)
 *   a  fragments of the arguments of a call (4)     n  1: answer with the number of tools received
 *
 * Every text chunk, whole answer and tool result carries a stamp, "@<16 digits>@": the monotonic clock in
 * units of 10 ns when it was written. load.c counts the stamps and measures how long each was under way.
 *
 * One thread around epoll, because it has to be much faster than what is measured with it. It reads only
 * what our own programs send: requests with a Content-Length, JSON without surprises.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
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

enum { MAX_CALLS = 16, NAME_SIZE = 96, STAMP_SIZE = 18 };

typedef struct {
    char *data;
    size_t len, cap;
} Buf;

typedef struct {
    const char *at, *end;
} Text;

typedef struct Conn {
    int fd;
    bool close_after, waits_for_write;
    Buf in, out;
    size_t sent; /* how much of `out` the kernel has taken */

    /* the streamed answer under way */
    bool streaming, wants_usage;
    int event, events; /* the next event, and how many come before the closing ones */
    int calls, fragments;
    uint64_t delay, due; /* nanoseconds */
    char model[128], names[MAX_CALLS][NAME_SIZE];
    Buf chunk; /* one text chunk, framed; only its stamp changes from event to event */
    size_t stamp_at;

    struct Conn *next, *prev; /* all connections, to find the one that is due next */
} Conn;

static Conn all = {.next = &all, .prev = &all};
static int epoll_fd;
static Buf openapi;

/* ---- bytes ------------------------------------------------------------------------------------------ */

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void put(Buf *b, const char *s, size_t n) {
    if (b->len + n > b->cap) {
        b->cap = (b->len + n) * 2;
        b->data = realloc(b->data, b->cap);
        if (!b->data) {
            perror("realloc");
            exit(1);
        }
    }
    memcpy(b->data + b->len, s, n);
    b->len += n;
}

__attribute__((format(printf, 2, 3))) static void putf(Buf *b, const char *format, ...) {
    char *s;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&s, format, args);
    va_end(args);
    put(b, s, n);
    free(s);
}

static void write_stamp(char *to) {
    uint64_t v = now() / 10;
    to[0] = to[STAMP_SIZE - 1] = '@';
    for (int i = STAMP_SIZE - 2; i > 0; i--, v /= 10) to[i] = '0' + v % 10;
}

static void put_stamp(Buf *b) {
    char s[STAMP_SIZE];
    write_stamp(s);
    put(b, s, sizeof s);
}

static void put_words(Buf *b, int n) {
    static const char words[] = "the quick brown fox jumps over the lazy dog ";
    const int len = sizeof words - 1;
    for (; n > 0; n -= len) put(b, words, n < len ? n : len);
}

/* ---- reading a request ------------------------------------------------------------------------------ */

/* The place of the value behind the next `key` (with its quotes), or NULL. */
static const char *value_of(Text t, const char *key) {
    const char *p = t.at ? memmem(t.at, t.end - t.at, key, strlen(key)) : NULL;
    if (!p) return NULL;
    for (p += strlen(key); p < t.end && strchr(" :\n\t", *p); p++) {}
    return p;
}

static void copy_string(char *to, size_t cap, const char *p, const char *end) {
    size_t i = 0;
    if (p && *p == '"')
        for (p++; p < end && *p != '"' && i + 1 < cap;) to[i++] = *p++;
    to[i] = 0;
}

static bool is_true(Text t, const char *key) {
    const char *p = value_of(t, key);
    return p && t.end - p >= 4 && !memcmp(p, "true", 4);
}

/* The number behind "-<key>" in the name of the model. */
static int option(const char *model, char key, int otherwise) {
    while ((model = strchr(model, '-')))
        if (*++model == key) return atoi(model + 1);
    return otherwise;
}

static int count_tool_messages(Text t) {
    int n = 0;
    while ((t.at = value_of(t, "\"role\"")))
        if (t.end - t.at >= 6 && !memcmp(t.at, "\"tool\"", 6)) n++;
    return n;
}

/* Go through {"type": "function", "function": {"name": ...}} entries; keep the first names, count all. */
static int read_tools(Text t, char names[][NAME_SIZE], int keep) {
    int n = 0;
    t.at = value_of(t, "\"tools\"");
    while (t.at && (t.at = value_of(t, "\"function\""))) {
        if (*t.at != '{') continue; /* that was the value of "type" */
        if (n < keep) copy_string(names[n], NAME_SIZE, value_of(t, "\"name\""), t.end);
        if (++n == keep) break;
    }
    return n;
}

/* ---- answers ---------------------------------------------------------------------------------------- */

static void answer(Conn *c, const char *status, const char *body, size_t n) {
    putf(&c->out, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", status, n);
    put(&c->out, body, n);
}

/* One SSE event as one HTTP chunk; `json` is freed. */
static void send_event(Conn *c, Buf json) {
    putf(&c->out, "%zx\r\ndata: %.*s\n\n\r\n", json.len + 8, (int)json.len, json.data);
    free(json.data);
}

static Buf chunk_head(Conn *c) {
    Buf b = {0};
    putf(&b,
         "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
         "\"model\":\"%s\",\"choices\":[",
         c->model);
    return b;
}

static void prepare_chunk(Conn *c, int size) {
    Buf json = chunk_head(c);
    putf(&json, "{\"index\":0,\"delta\":{\"content\":\"");
    size_t stamp = json.len;
    put_stamp(&json);
    static const char tail[] = " \"},\"finish_reason\":null}]}";
    put_words(&json, size - 8 - (int)json.len - (int)sizeof tail + 1);
    put(&json, tail, sizeof tail - 1);

    c->chunk.len = 0;
    putf(&c->chunk, "%zx\r\ndata: ", json.len + 8);
    c->stamp_at = c->chunk.len + stamp;
    put(&c->chunk, json.data, json.len);
    putf(&c->chunk, "\n\n\r\n");
    free(json.data);
}

static void send_text_event(Conn *c) {
    write_stamp(c->chunk.data + c->stamp_at);
    put(&c->out, c->chunk.data, c->chunk.len);
}

/* Fragment 0 names the call, the others bring its arguments. */
static void send_call_event(Conn *c, int call, int fragment) {
    Buf b = chunk_head(c);
    putf(&b, "{\"index\":0,\"delta\":{");
    if (fragment == 0) {
        if (call == 0) putf(&b, "\"role\":\"assistant\",\"content\":null,");
        putf(&b,
             "\"tool_calls\":[{\"index\":%d,\"id\":\"call_%d\",\"type\":\"function\","
             "\"function\":{\"name\":\"%s\",\"arguments\":\"\"}}]",
             call, call, c->names[call]);
    } else {
        putf(&b, "\"tool_calls\":[{\"index\":%d,\"function\":{\"arguments\":\"%sword%d %s\"}}]", call,
             fragment == 1 ? "{\\\"query\\\": \\\"" : "", fragment,
             fragment == c->fragments ? "\\\", \\\"limit\\\": 3}" : "");
    }
    putf(&b, "},\"finish_reason\":null}]}");
    send_event(c, b);
}

static void end_stream(Conn *c) {
    Buf b = chunk_head(c);
    putf(&b, "{\"index\":0,\"delta\":{},\"finish_reason\":\"%s\"}]}", c->calls ? "tool_calls" : "stop");
    send_event(c, b);
    if (c->wants_usage) {
        b = chunk_head(c);
        putf(&b, "],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":100,\"total_tokens\":110}}");
        send_event(c, b);
    }
    putf(&c->out, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    c->streaming = false;
}

static void next_event(Conn *c) {
    int per_call = c->fragments + 1;
    if (c->event == c->events) end_stream(c);
    else if (c->calls) send_call_event(c, c->event / per_call, c->event % per_call);
    else send_text_event(c);
    c->event++;
    c->due += c->delay;
}

static void start_stream(Conn *c) {
    putf(&c->out,
         "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
         "Transfer-Encoding: chunked\r\n\r\n");
    c->streaming = true;
    c->fragments = option(c->model, 'a', 4);
    c->event = 0;
    c->events = c->calls ? c->calls * (c->fragments + 1) : option(c->model, 'c', 100);
    c->delay = option(c->model, 'd', 0) * 1000ull;
    c->due = now();
    prepare_chunk(c, option(c->model, 's', 200));
}

static void put_calls(Buf *b, Conn *c) {
    putf(b, "null,\"tool_calls\":[");
    for (int i = 0; i < c->calls; i++)
        putf(b,
             "%s{\"id\":\"call_%d\",\"type\":\"function\",\"function\":{\"name\":\"%s\","
             "\"arguments\":\"{\\\"query\\\": \\\"words\\\", \\\"limit\\\": 3}\"}}",
             i ? "," : "", i, c->names[i]);
    putf(b, "]");
}

static void answer_whole(Conn *c, Text body) {
    Buf b = {0};
    putf(&b,
         "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"%s\","
         "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":",
         c->model);
    if (c->calls) put_calls(&b, c);
    else if (option(c->model, 'n', 0)) putf(&b, "\"%d tools\"", read_tools(body, c->names, 0));
    else {
        putf(&b, "\"");
        put_stamp(&b);
        put_words(&b, option(c->model, 'r', 1000) - (int)b.len - 130);
        putf(&b, "\"");
    }
    putf(&b,
         "},\"finish_reason\":\"%s\"}],"
         "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":100,\"total_tokens\":110}}",
         c->calls ? "tool_calls" : "stop");
    answer(c, "200 OK", b.data, b.len);
    free(b.data);
}

/* How many tools this turn calls: none once the request holds the results of all rounds. */
static int plan_calls(Conn *c, Text body) {
    int calls = option(c->model, 't', 0), rounds = option(c->model, 'k', 1);
    if (calls > MAX_CALLS) calls = MAX_CALLS;
    if (!calls || count_tool_messages(body) >= calls * rounds) return 0;
    int named = read_tools(body, c->names, calls);
    for (int i = named; i < calls; i++) strcpy(c->names[i], named ? c->names[i % named] : "op_0");
    return calls;
}

static void chat(Conn *c, Text body) {
    copy_string(c->model, sizeof c->model, value_of(body, "\"model\""), body.end);
    c->wants_usage = is_true(body, "\"include_usage\"");
    c->calls = plan_calls(c, body);
    if (is_true(body, "\"stream\"")) start_stream(c);
    else answer_whole(c, body);
}

static void tool_result(Conn *c) {
    Buf b = {0};
    putf(&b, "{\"result\":\"");
    put_stamp(&b);
    put_words(&b, 200);
    putf(&b, "\"}");
    answer(c, "200 OK", b.data, b.len);
    free(b.data);
}

/* Operations of the size and shape that real tool servers have: about 800 bytes each. */
static void describe_tools(int tools) {
    putf(&openapi, "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"mock\",\"version\":\"1\"},\"paths\":{");
    for (int i = 0; i < tools; i++)
        putf(&openapi,
             "%s\"/op_%d\":{\"post\":{\"operationId\":\"op_%d\",\"summary\":\"Operation %d\",\"description\":"
             "\"Looks things up in collection %d and gives back the entries that fit, best first, with their "
             "titles, addresses and a short piece of text.\",\"requestBody\":{\"required\":true,\"content\":"
             "{\"application/json\":{\"schema\":{\"type\":\"object\",\"properties\":{\"query\":{\"type\":"
             "\"string\",\"description\":\"What to look for, in plain words. Quotes keep words together; a "
             "leading minus leaves a word out.\"},\"limit\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":"
             "100,\"default\":10,\"description\":\"How many entries to give back at most\"},\"order\":{"
             "\"type\":\"string\",\"enum\":[\"newest\",\"oldest\",\"best\"],\"default\":\"best\"},"
             "\"filters\":{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"field\":{"
             "\"type\":\"string\"},\"op\":{\"type\":\"string\",\"enum\":[\"eq\",\"ne\",\"lt\",\"gt\"]},"
             "\"value\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"number\"}]}},\"required\":[\"field\","
             "\"op\",\"value\"]}}},\"required\":[\"query\"]}}}},\"responses\":{\"200\":{\"description\":"
             "\"OK\"}}}}",
             i ? "," : "", i, i, i, i);
    putf(&openapi, "}}");
}

/* ---- HTTP ------------------------------------------------------------------------------------------- */

static void route(Conn *c, const char *method, const char *path, Text body) {
    static const char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\"}]}";
    static const char unknown[] = "{\"error\":{\"message\":\"no such path\"}}";
    bool post = !strcmp(method, "POST");
    if (post && !strcmp(path, "/v1/chat/completions")) chat(c, body);
    else if (post && !strncmp(path, "/op_", 4)) tool_result(c);
    else if (!strcmp(path, "/v1/models")) answer(c, "200 OK", models, sizeof models - 1);
    else if (!strcmp(path, "/openapi.json")) answer(c, "200 OK", openapi.data, openapi.len);
    else answer(c, "404 Not Found", unknown, sizeof unknown - 1);
}

/* Serve one request of the input: 1 done, 0 it is not whole yet, -1 nonsense. */
static int serve_request(Conn *c) {
    char *head = c->in.data, method[12], path[512];
    char *blank = c->in.len ? memmem(head, c->in.len, "\r\n\r\n", 4) : NULL;
    if (!blank) return 0;
    size_t head_len = blank + 4 - head, body_len = 0;
    bool close_after = false;
    *blank = 0; /* a string for sscanf and strstr */
    if (sscanf(head, "%11s %511s", method, path) != 2) return -1;
    for (char *line = head; (line = strstr(line, "\r\n"));) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) body_len = strtoul(line + 15, NULL, 10);
        else if (!strncasecmp(line, "connection: close", 17)) close_after = true;
    }
    *blank = '\r';
    if (c->in.len - head_len < body_len) return 0;
    c->close_after = close_after;
    route(c, method, path, (Text){head + head_len, head + head_len + body_len});
    c->in.len -= head_len + body_len;
    memmove(head, head + head_len + body_len, c->in.len);
    return 1;
}

static void watch_writing(Conn *c, bool on) {
    if (c->waits_for_write == on) return;
    struct epoll_event e = {on ? EPOLLIN | EPOLLOUT : EPOLLIN, {.ptr = c}};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
    c->waits_for_write = on;
}

/* 1 all written, 0 the socket is full, -1 the client is gone. */
static int flush(Conn *c) {
    while (c->sent < c->out.len) {
        ssize_t k = send(c->fd, c->out.data + c->sent, c->out.len - c->sent, MSG_NOSIGNAL);
        if (k < 0) {
            if (errno != EAGAIN) return -1;
            watch_writing(c, true);
            return 0;
        }
        c->sent += k;
    }
    c->out.len = c->sent = 0;
    watch_writing(c, false);
    return 1;
}

static void drop(Conn *c) {
    c->prev->next = c->next;
    c->next->prev = c->prev;
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c->chunk.data);
    free(c);
}

/* Go on with a connection as far as it goes. Each event is a send() of its own, as model servers do it. */
static void advance(Conn *c) {
    for (;;) {
        int written = flush(c);
        if (written < 0) return drop(c);
        if (!written) return;
        if (c->streaming) {
            if (c->delay && now() < c->due) return;
            next_event(c);
        } else {
            if (c->close_after) return drop(c);
            int served = serve_request(c);
            if (served < 0) return drop(c);
            if (!served) return;
        }
    }
}

static void receive(Conn *c) {
    static char bytes[1 << 18];
    ssize_t k = recv(c->fd, bytes, sizeof bytes, 0);
    if (k == 0 || (k < 0 && errno != EAGAIN)) return drop(c);
    if (k > 0) put(&c->in, bytes, k);
    advance(c);
}

static void accept_all(int listener) {
    int one = 1;
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->next = all.next;
        c->prev = &all;
        all.next->prev = c;
        all.next = c;
        struct epoll_event e = {EPOLLIN, {.ptr = c}};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static bool is_paced(Conn *c) { return c->streaming && c->delay && !c->waits_for_write; }

/* Send what is due; return the nanoseconds until the next event, 0 when none is waited for. */
static uint64_t run_paced_streams(void) {
    uint64_t next = 0, t = now();
    for (Conn *c = all.next, *after; c != &all; c = after) {
        after = c->next;
        if (is_paced(c) && c->due <= t) advance(c);
    }
    for (Conn *c = all.next; c != &all; c = c->next)
        if (is_paced(c) && (!next || c->due < next)) next = c->due;
    t = now();
    return !next ? 0 : next > t ? next - t : 1;
}

static int listen_on(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) {
        perror("mock: listen");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    int port = 9000, tools = 20;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--tools")) tools = atoi(argv[i + 1]);
        else return fprintf(stderr, "mock: unknown option %s\n", argv[i]), 2;
    }
    signal(SIGPIPE, SIG_IGN);
    describe_tools(tools);
    epoll_fd = epoll_create1(0);
    int listener = listen_on(port);
    struct epoll_event e = {EPOLLIN, {.ptr = NULL}}, ready[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        uint64_t wait = run_paced_streams();
        struct timespec timeout = {wait / 1000000000ull, wait % 1000000000ull};
        int n = epoll_pwait2(epoll_fd, ready, 256, wait ? &timeout : NULL, NULL);
        for (int i = 0; i < n; i++) {
            Conn *c = ready[i].data.ptr;
            if (!c) accept_all(listener);
            else if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
            else advance(c);
        }
    }
}
