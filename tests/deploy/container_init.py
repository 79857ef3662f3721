"""Process 1 of a container: build its file system, run its command as its user, and wait for it.

Root runs this program in new mount, PID, UTS and IPC namespaces, with a JSON specification on standard input. It needs only
the standard library. The container's root is an overlay of this machine's root and becomes read-only. The change of user drops
all capabilities, and no_new_privs prevents getting them back.
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
    build_file_system(spec, root)
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


def build_file_system(spec: dict, root: Path) -> None:  # type: ignore[type-arg]
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
        mount("-t", "tmpfs", "-o", "mode=1777,noexec,nosuid,nodev", "tmpfs", directory)  # Docker's options
    for path in spec["host_paths"]:  # what the image would contain: Python, its packages and this project
        make_reachable(root, path)
        bind(path, inside(root, path), read_only=True)
    for source, target, read_only in spec["mounts"]:
        bind(source, inside(root, target), read_only=read_only)
    mount("-o", "remount,ro", root)


def inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def make_reachable(root: Path, path: str) -> None:
    """Let all users pass through the directories above `path`. This changes only the overlay."""
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
    """Reap child processes until `pid` ends, and return its exit code."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
