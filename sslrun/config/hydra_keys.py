"""Hydra's own keys: those that sslrun sets itself, and plugins that need a package."""

import importlib.util

from hydra.core.override_parser.types import Override

CHDIR = "relative paths start from the folder in which the command is run"
# Keys of Hydra that cannot be set -> reason.
FIXED = {
    "hydra.job.chdir": CHDIR,
    "hydra.job.name": "it marks the runs of a study",
    "hydra.job.config_name": "it is the name of the command",
    "hydra.job.num": "it is the number of the job in a sweep",
    "hydra.job.id": "it is the number of the job in a sweep",
    "hydra.mode": "-m makes a sweep",
    "hydra.runtime": "Hydra fills it in",
}
PACKAGES = {  # of Hydra's plugins, by the prefix of a choice
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher",
        "submitit": "hydra-submitit-launcher",
        "ray": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
    },
    "hydra/sweeper": {
        "optuna": "hydra-optuna-sweeper",
        "nevergrad": "hydra-nevergrad-sweeper",
        "ax": "hydra-ax-sweeper",
    },
    "hydra/job_logging": {"colorlog": "hydra-colorlog"},
    "hydra/hydra_logging": {"colorlog": "hydra-colorlog"},
}

EXTRAS = {"hydra-submitit-launcher": "'sslrun[cluster]'"}  # of ours, that bring a package


def check(o: Override, mistakes: list[str]) -> bool:
    """Return whether an override is not one of Hydra's or may be set; otherwise add a line to `mistakes`."""
    key, value = o.key_or_group.replace("@", ".").split(":")[0], str(o.value())
    for fixed, reason in FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            if key == "hydra.job.chdir" and value.lower() == "false":
                return True
            mistakes.append(f"{o.input_line}: {reason}; remove it")
            return False
    if key == "hydra.sweep.subdir" and ("/" in value or "\\" in value):
        mistakes.append(f"{o.input_line}: jobs must be directly in the folder of the sweep; use a name without slashes")
        return False
    package = next((p for start, p in PACKAGES.get(key, {}).items() if value.startswith(start)), None)
    if package and not _installed(package):
        install = f"pip install {EXTRAS.get(package, package)}"
        mistakes.append(f"{o.input_line}: needs the package {package}; install it with {install}")
        return False
    return True


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}") is not None
    except ModuleNotFoundError:  # no plugin is installed
        return False
