"""Run by `confined.py` as a script: leave the machine behind, and become a stranger's program.

Arguments: a folder for the new root, and a descriptor on which it says "ready", and "late" where
the program was stopped, or else what went wrong. On standard input: the setting, as JSON. STDIN_FD:
the program's own input.
"""

import ctypes
import json
import os
import resource
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC = 0x00020000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NOSUID, NODEV = 0x1, 0x2, 0x4
BIND, RECURSIVE, PRIVATE, DETACH = 0x1000, 0x4000, 0x40000, 0x2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PIVOT_ROOT = 155  # on x86_64; elsewhere the call fails, and nothing is run
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
STRANGER, NOBODY = 1000, 65534
FILE_BYTES, PROCESSES, DESCRIPTORS = 16 << 20, 32, 64


def checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), flags, data.encode())
    checked(LIBC.mount(*arguments), f"mount {target}")


class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def show(path: str, root: str) -> None:
    """Have a file or folder of the machine in the new root, read-only with all below it."""
    inside = root + path
    if os.path.islink(path):
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if not os.path.lexists(inside):
            os.symlink(os.readlink(path), inside)
        return
    if not os.path.exists(path) or os.path.ismount(inside):
        return
    os.makedirs(inside if os.path.isdir(path) else os.path.dirname(inside), exist_ok=True)
    if not os.path.isdir(path):
        open(inside, "w").close()
    mount(path, inside, "", BIND | RECURSIVE)
    if path in DEVICES:
        return
    wanted = Attributes(READ_ONLY | NOSUID | NODEV, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    arguments = (MOUNT_SETATTR, AT_FDCWD, inside.encode(), AT_RECURSIVE, ctypes.byref(wanted), size)
    checked(LIBC.syscall(*arguments), f"make {path} read-only")


def unshare_as(user: int, group: int) -> None:
    """Enter the namespaces, where user STRANGER is somebody without rights outside.

    Of root that is NOBODY: the kernel counts no processes against the limit of root. Only a process
    outside may name another user than its own, so that of root writes the names from there.
    """
    kinds = NEWUSER | NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    if user:
        checked(LIBC.unshare(kinds), "unshare")
        name_users("self", "deny", f"{STRANGER} {user} 1", f"{STRANGER} {group} 1")
        return
    entered, named = os.pipe(), os.pipe()
    ours = os.getpid()
    if not os.fork():
        os.close(entered[1])
        if os.read(entered[0], 1):
            users = f"0 0 1\n{STRANGER} {NOBODY} 1"
            name_users(str(ours), None, users, users)
            os.write(named[1], b"x")
        os._exit(0)
    os.close(named[1])
    checked(LIBC.unshare(kinds), "unshare")
    os.write(entered[1], b"x")
    if not os.read(named[0], 1):
        raise OSError(1, "no user may be named", "uid_map")
    for descriptor in (named[0], *entered):
        os.close(descriptor)
    os.wait()


def name_users(process: str, setgroups: str | None, users: str, groups: str) -> None:
    for name, text in (("setgroups", setgroups), ("uid_map", users), ("gid_map", groups)):
        if text is not None:
            with open(f"/proc/{process}/{name}", "w") as file:
                file.write(text)


def leave(root: str, base: str) -> None:
    """Into namespaces of its own, and to a root that has the interpreter and little else."""
    unshare_as(os.getuid(), os.getgid())
    # It shall make no namespaces of its own, where it could ask more of the kernel.
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    mount("none", "/", "", RECURSIVE | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "size=64m,mode=755")
    for path in (*SYSTEM, *DEVICES, base):
        show(path, root)
    for folder in ("/work", "/tmp", "/old"):
        os.mkdir(root + folder)
        os.chown(root + folder, STRANGER, STRANGER)
    os.chdir(root)
    checked(LIBC.syscall(PIVOT_ROOT, b".", b"old"), "pivot_root")
    os.chdir("/work")
    checked(LIBC.umount2(b"/old", DETACH), "leave the old root")
    os.rmdir("/old")


def limit(seconds: int, memory_bytes: int) -> None:
    for what, amount in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (amount, amount))


def main() -> None:
    root, told = sys.argv[1], int(sys.argv[2])
    setting = json.loads(sys.stdin.buffer.read())
    text = int(os.environ["STDIN_FD"])
    try:
        leave(root, setting["base"])
        child = os.fork()  # the first process of the new namespace: with it all others end
    except OSError as error:
        os.write(told, f"{error.strerror} ({error.filename or ''})".encode())
        os._exit(1)
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    # The first process is spared most signals, those of limits too, so the program is the second.
    program = os.fork()
    if program:
        watch(program, setting["seconds"], told)
    become(setting, text, told)


def watch(program: int, seconds: int, told: int) -> None:
    """Wait for the program, and stop it at the deadline; all others end with this process."""

    def late(*_: object) -> None:
        os.write(told, b" late")
        os._exit(1)

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    while True:
        ended, status = os.wait()
        if ended == program:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def become(setting: dict, text: int, told: int) -> None:
    """Be the program."""
    LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    try:
        with open("/work/program.py", "w", encoding="utf-8", errors="replace") as file:
            file.write(setting["program"])
        os.chmod("/work/program.py", 0o444)
        os.dup2(text, 0)
        os.set_inheritable(told, False)
        os.closerange(3, told)
        os.closerange(told + 1, 256)
        if os.getuid() != STRANGER:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
        limit(setting["seconds"], setting["memory_bytes"])
        os.write(told, b"ready")
        os.close(told)
        # Without the capabilities of the namespace, which end as it becomes another program.
        os.execve(setting["python"], ["python", "-I", "-S", "/work/program.py"], {"HOME": "/work"})
    except OSError as error:
        os.write(2, str(error).encode())
    os._exit(1)


if __name__ == "__main__":
    main()
