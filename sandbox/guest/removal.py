"""Removes a folder with everything in it, at any depth: ``shutil.rmtree`` is recursive and fails beyond about a thousand levels."""

import contextlib
import os
import stat

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(top: str) -> None:
    """Remove a folder. What cannot be removed stays, without an error. Links are removed, never followed.

    Every subfolder is moved to the top before it is emptied, so no path gets longer than two names.
    """
    with contextlib.suppress(OSError):
        top_fd = os.open(top, FOLDER)
        try:
            _empty(top_fd)
        finally:
            os.close(top_fd)
        os.rmdir(top)


def _empty(top_fd: int) -> None:
    names, moved, mark = os.listdir(top_fd), 0, os.urandom(8).hex()
    while names:
        name = names.pop()
        with contextlib.suppress(OSError):
            if not _is_folder(name, top_fd):
                os.unlink(name, dir_fd=top_fd)
                continue
            fd = os.open(name, FOLDER, dir_fd=top_fd)
            try:
                for below in os.listdir(fd):
                    with contextlib.suppress(OSError):
                        if _is_folder(below, fd):
                            moved += 1
                            place = "%s-%d" % (mark, moved)
                            os.rename(below, place, src_dir_fd=fd, dst_dir_fd=top_fd)
                            names.append(place)
                        else:
                            os.unlink(below, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=top_fd)


def _is_folder(name: str, parent_fd: int) -> bool:
    """Whether it is a folder (not a link to one). An unreadable one is made readable."""
    mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        return False
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, stat.S_IRWXU, dir_fd=parent_fd)
    return True
