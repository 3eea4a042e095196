"""Make the virtual environment that the Makefile works in: the packages that setup.cfg asks for, not this one itself.

Usage::

    python3 .ci/venv.py path            print the default folder
    python3 .ci/venv.py install FOLDER  make that environment, or bring it up to date

The default folder's name holds a hash of the dependency lists and of the Python version: checkouts that need the same
packages share one environment, and a change of another part of setup.cfg (a version, a description) makes no new one.

Plain standard library, and readable by old Pythons, so that they get a message and not a syntax error.
"""

import configparser
import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

SETUP_CFG = Path(__file__).resolve().parent.parent / "setup.cfg"
OLDEST, NEWEST = (3, 10), (3, 12)
STAMP = ".apt_monai-installed"


def requirements(setup_cfg: Path) -> "list[str]":
    """The requirement lines of setup.cfg: ``install_requires`` and every extra."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(setup_cfg.read_text())
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [line.strip() for lines in lists for line in lines.splitlines() if line.strip()]


def default_folder(setup_cfg: Path) -> Path:
    """Where the environment lies: its name hashes the requirements and the version of the Python that runs this."""
    text = "\n".join([platform.python_version(), *requirements(setup_cfg)])
    return Path.home() / ".cache" / "apt_monai" / f"venv-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def install(folder: Path, wanted: "list[str]") -> None:
    """Make the environment in ``folder``, unless its stamp says that it has what is wanted.

    The stamp is written last, and a folder that an interrupted run left behind (a marker lies beside it) is made anew.
    A folder that was there before is only added to. A lock makes a second run wait for the first.

    Raises:
        RuntimeError: the Python that runs this is none that the package supports.
        subprocess.CalledProcessError: venv or pip failed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp, unfinished = folder / STAMP, folder.with_name(folder.name + ".unfinished")
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text().splitlines() == wanted:
            return
        python = folder / "bin" / "python"
        if unfinished.exists():
            shutil.rmtree(folder, ignore_errors=True)
        if not python.exists():
            if not OLDEST <= sys.version_info[:2] <= NEWEST:
                raise RuntimeError(
                    f"apt_monai needs Python 3.10, 3.11 or 3.12, and {sys.executable} is {platform.python_version()}: "
                    "name another one, as in `make PYTHON=python3.12 demo`"
                )
            if not folder.exists():
                unfinished.touch()
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        print(f"Installing the packages into {folder}: about 8 GB, once", flush=True)
        subprocess.run([str(python), "-m", "pip", "install", "--upgrade", "pip"], check=True)
        subprocess.run([str(python), "-m", "pip", "install", *wanted], check=True)
        stamp.write_text("\n".join(wanted))
        if unfinished.exists():
            unfinished.unlink()


def main(arguments: "list[str]") -> "str | None":
    """Run one command; returns the message of what went wrong, or None."""
    if arguments == ["path"]:
        print(default_folder(SETUP_CFG))
        return None
    if len(arguments) != 2 or arguments[0] != "install":
        return __doc__
    try:
        install(Path(arguments[1]).absolute(), requirements(SETUP_CFG))
    except RuntimeError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        return (
            f"the environment {arguments[1]} is not finished: `{' '.join(error.cmd[:4])} ...` failed "
            f"with exit status {error.returncode} (see above). The same command tries again"
        )
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
