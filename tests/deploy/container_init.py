"""Process 1 of a container: lays its file system out, runs its command as its user, waits for it.

Run by root in new mount, PID, UTS and IPC namespaces with a JSON specification on standard input; needs the standard library
only. The root is an overlay of this machine's own, read-only from then on; capabilities go with the change of user, and
cannot come back (no_new_privs).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    spec = json.load(sys.stdin)
    root = Path(spec["scratch"]) / "root"
    lay_out(spec, root)
    subprocess.run(["hostname", spec["hostname"]], check=True)
    os.chroot(root)
    os.chdir(spec["cwd"])
    uid, gid = spec["user"].split(":")
    child = subprocess.Popen(
        ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs", "--", *spec["command"]],
        env=spec["environment"],
        stdin=subprocess.DEVNULL,
    )
    signal.signal(signal.SIGTERM, lambda number, _frame: child.send_signal(number))
    return reap_until(child.pid)


def lay_out(spec: dict, root: Path) -> None:  # type: ignore[type-arg]
    """Build the container's file system at `root`."""
    scratch = root.parent
    mount("-t", "tmpfs", "tmpfs", scratch)
    for name in ("root", "upper", "work"):
        (scratch / name).mkdir()
    mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work", root)
    for path, text in spec["files"].items():
        inside(root, path).write_text(text)
    mount("-t", "proc", "proc", root / "proc")
    mount("--rbind", "/sys", root / "sys")
    mount("--rbind", "/dev", root / "dev")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "dev/shm")
    for target in spec["tmpfs"]:
        directory = inside(root, target)
        directory.mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", directory)
    for kept in spec["kept"]:  # what the image would bring: python, its packages and this project
        reachable(root, kept)
        bind(kept, inside(root, kept), read_only=True)
    for source, target, read_only in spec["mounts"]:
        bind(source, inside(root, target), read_only=read_only)
    mount("-o", "remount,ro", root)


def inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def reachable(root: Path, path: str) -> None:
    """Let everybody pass through the directories above `path`: a change of the overlay alone."""
    for parent in reversed(Path(path).parents[:-1]):
        directory = inside(root, str(parent))
        directory.mkdir(exist_ok=True)
        directory.chmod(directory.stat().st_mode | 0o111)


def bind(source: str, target: Path, *, read_only: bool) -> None:
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount("--bind", source, target)
    if read_only:
        mount("-o", "remount,bind,ro", target)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def reap_until(pid: int) -> int:
    """Wait for what becomes this process's children until `pid` ends; returns its exit code."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
