"""A small image with a Python and nothing else of interest, made of this machine's own, since no registry may answer."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from docker import DockerClient

LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "__pycache__",
}


def import_python(client: DockerClient, tag: str) -> None:
    """Import an image that holds the interpreter of these tests, its library, and what it is linked with."""
    python = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    said = "".join(
        subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
        for path in (python, Path("/bin/sh"), *library.glob("lib-dynload/*.so"))
    )
    linked = {Path(found) for found in re.findall(r"(/\S+\.so\S*)", said)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted({python, Path("/bin/sh"), *linked}):
            archive.add(path.resolve(), arcname=str(path))
        archive.add(library, filter=lambda entry: None if LEFT_OUT & set(Path(entry.name).parts) else entry)
        link = tarfile.TarInfo("usr/local/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(python)
        archive.addfile(link)
    name, _, version = tag.partition(":")
    client.api.import_image_from_data(buffer.getvalue(), repository=name, tag=version)
