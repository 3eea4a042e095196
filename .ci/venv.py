"""Make the virtual environment that the Makefile works in: the packages that setup.cfg asks for, not this one itself.

Usage::

    python3 .ci/venv.py path                        print the default folder
    python3 .ci/venv.py install FOLDER              make that environment, or bring it up to date
    python3 .ci/venv.py path label                  the same of MONAI Label's server
    python3 .ci/venv.py install FOLDER label VENV   likewise; VENV is the first environment, which must be there

The default folder's name holds a hash of the dependency lists and of the Python version: checkouts that need the same
packages share one environment, and a change of another part of setup.cfg (a version, a description) makes no new one.

MONAI Label needs numpy and pydicom older than ours, so its server has an environment of its own. It holds only what
differs, about 0.6 GB: what it lacks (torch above all) it takes from the first one, by a .pth file.

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
LABEL = "label"  # the extra of MONAI Label's server, which has an environment of its own


def requirements(setup_cfg: Path, label: bool = False) -> "list[str]":
    """The requirement lines of setup.cfg: ``install_requires`` and every extra but one; or of that one alone."""
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(setup_cfg.read_text())
    extras = config["options.extras_require"]
    lists = [config["options"]["install_requires"], *(extras[name] for name in extras if name != LABEL)]
    lists = [extras[LABEL]] if label else lists
    return [line.strip() for lines in lists for line in lines.splitlines() if line.strip()]


def default_folder(setup_cfg: Path, label: bool = False) -> Path:
    """Where the environment lies: its name hashes the requirements and the version of the Python that runs this."""
    lines = [platform.python_version(), *requirements(setup_cfg)] + (requirements(setup_cfg, label) if label else [])
    name = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "apt_monai" / f"{LABEL if label else 'venv'}-{name}"


def install(folder: Path, wanted: "list[str]", base: "Path | None" = None) -> None:
    """Make the environment in ``folder``, unless its stamp says that it has what is wanted.

    With ``base``, an environment that is there, it is one beside that: of its Python, and what it lacks is taken from
    there.

    The stamp is written last, and a folder that an interrupted run left behind (a marker lies beside it) is made anew.
    A folder that was there before is only added to. A lock makes a second run wait for the first.

    Raises:
        RuntimeError: the Python that runs this is none that the package supports.
        subprocess.CalledProcessError: venv or pip failed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp, unfinished = folder / STAMP, folder.with_name(folder.name + ".unfinished")
    described = wanted if base is None else [*wanted, f"beside {base}"]
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text().splitlines() == described:
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
            maker = sys.executable if base is None else str(base / "bin" / "python")
            subprocess.run([maker, "-m", "venv", str(folder)], check=True)
        print(f"Installing the packages into {folder}: about {8 if base is None else 0.6} GB, once", flush=True)
        if base is not None:
            (_packages(folder) / "apt_monai_base.pth").write_text(f"{_packages(base)}\n")
        subprocess.run([str(python), "-m", "pip", "install", "--upgrade", "pip"], check=True)
        subprocess.run([str(python), "-m", "pip", "install", *wanted], check=True)
        stamp.write_text("\n".join(described))
        if unfinished.exists():
            unfinished.unlink()


def _packages(environment: Path) -> Path:
    """Where an environment's packages lie."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    python = [str(environment / "bin" / "python"), "-c", code]
    return Path(subprocess.run(python, check=True, stdout=subprocess.PIPE).stdout.decode().strip())


def main(arguments: "list[str]") -> "str | None":
    """Run one command; returns the message of what went wrong, or None."""
    if arguments in (["path"], ["path", LABEL]):
        print(default_folder(SETUP_CFG, label=len(arguments) == 2))
        return None
    label = arguments[2:3] == [LABEL]
    if arguments[:1] != ["install"] or len(arguments) != (4 if label else 2):
        return __doc__
    try:
        base = Path(arguments[3]).absolute() if label else None
        install(Path(arguments[1]).absolute(), requirements(SETUP_CFG, label), base)
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
