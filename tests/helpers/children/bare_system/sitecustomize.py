"""Takes away what other systems lack: modules from the package alone, since Linux builds of libraries need some of them."""

import builtins
import os
import select
import signal

MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "posix", "_posixsubprocess", "syslog", "pty")
NAMES = {
    os: ("fork", "forkpty", "sched_getaffinity", "getuid", "geteuid", "getgid", "killpg", "setsid", "O_NOFOLLOW"),
    signal: ("SIGHUP", "SIGPIPE", "SIGUSR1", "pthread_sigmask", "setitimer", "alarm"),
    select: ("poll", "epoll"),
}
original = builtins.__import__


def refuse(name, *arguments, **named):
    importer = (arguments[0] or {}).get("__name__", "") if arguments else ""
    if name in MODULES and importer.startswith("nlp_transfer"):
        raise ImportError(name)
    return original(name, *arguments, **named)


builtins.__import__ = refuse
for module, names in NAMES.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
