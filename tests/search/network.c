/* Preloaded into a process: notes in the file NETWORK_NOTES what is looked up and connected to, by Python or by C.
   See test_network.py. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *host, const char *port) {
    int before = errno;
    char line[600];
    int length = snprintf(line, sizeof line, "%.500s %.50s\n", host ? host : "-", port ? port : "-");
    int file = open(getenv("NETWORK_NOTES"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0 || write(file, line, length) != length)
        abort();
    close(file);
    errno = before;
}

static void note_address(const struct sockaddr *to, socklen_t length) {
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (to && (to->sa_family == AF_INET || to->sa_family == AF_INET6)
        && !getnameinfo(to, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
        note(host, port);
}

int connect(int socket, const struct sockaddr *to, socklen_t length) {
    note_address(to, length);
    return REAL(connect)(socket, to, length);
}

ssize_t sendto(int socket, const void *said, size_t bytes, int flags, const struct sockaddr *to, socklen_t length) {
    note_address(to, length);
    return REAL(sendto)(socket, said, bytes, flags, to, length);
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
    note_address(message->msg_name, message->msg_namelen);
    return REAL(sendmsg)(socket, message, flags);
}

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found) {
    note(host, port);
    return REAL(getaddrinfo)(host, port, hints, found);
}

struct hostent *gethostbyname(const char *host) {
    note(host, 0);
    return REAL(gethostbyname)(host);
}
