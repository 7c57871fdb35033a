"""A Slurm of this machine: munge, slurmctld and slurmd with folders and ports of their own."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.servers.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_START_S = 60

_CONFIGURATION = """
ClusterName=trial
SlurmctldHost=localhost
SlurmctldPort={controller_port}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
JobRequeue=1
ReturnToService=2
KillWait=10
MinJobAge=3600
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


class Slurm:
    """A context: the cluster, with so many nodes that each have `cpus` and `memory_mib`."""

    def __init__(self, folder: Path, nodes: int, cpus: int, memory_mib: int) -> None:
        self._folder = folder
        self._names = [f"trial{number}" for number in range(nodes)]
        self._cpus, self._memory_mib = cpus, memory_mib
        self._started: list[subprocess.Popen[bytes]] = []
        configuration = folder / "slurm.conf"
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(configuration)}

    def __enter__(self) -> Self:
        folder = self._folder
        (folder / "state").mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        controller_port, *ports = free_ports(1 + len(self._names))
        sizes = f"CPUs={self._cpus} RealMemory={self._memory_mib} State=UNKNOWN"
        nodes = [
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {sizes}"
            for name, port in zip(self._names, ports, strict=True)
        ]
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                folder=folder,
                controller_port=controller_port,
                user="root" if os.geteuid() == 0 else os.environ["USER"],
                nodes="\n".join(nodes),
            )
        )
        try:
            files = {"key": key, "socket": folder / "munge.socket", "pid": folder / "munge.pid"}
            files |= {"log": folder / "munge.log", "seed": folder / "munge.seed"}
            flags = {"socket": "--socket"} | {
                name: f"--{name}-file" for name in ("key", "pid", "log", "seed")
            }
            self._start("munged", "--foreground", "--force", "--num-threads=1",
                        *(f"{flags[name]}={path}" for name, path in files.items()))  # fmt: skip
            _wait(lambda: (folder / "munge.socket").exists(), "munged's socket")
            self._start("slurmctld", "-D")
            for name in self._names:
                self._start("slurmd", "-D", "-N", name)
            _wait(self._is_idle, "nodes that are idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self.run("scancel", "--user", str(os.geteuid()), check=False)
            deadline = time.monotonic() + 90  # a busy machine needs its time to end a job
            while self.run("squeue", "--noheader", check=False).strip():
                if time.monotonic() > deadline:
                    break
                time.sleep(0.5)
        for process in reversed(self._started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._started.clear()

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """What a command of Slurm prints."""
        finished = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or finished.returncode == 0, finished.stderr
        return finished.stdout

    def shows(self, job: str) -> dict[str, str]:
        """The fields of a job: JobState, ExitCode, Restarts, ..."""
        fields = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.partition("=")[::2] for field in fields if "=" in field)

    def _is_idle(self) -> bool:
        words = self.run("sinfo", "--noheader", "--format=%T", check=False).split()
        return words == ["idle"]

    def _start(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=_PATH)
        assert path is not None
        log = (self._folder / f"{program}.out").open("ab")
        with log:
            self._started.append(
                subprocess.Popen(
                    [path, *arguments],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for the tests, which then end the jobs
                )
            )


def _wait(is_so: "object", what: str) -> None:
    assert callable(is_so)
    deadline = time.monotonic() + _START_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {_START_S} s for {what}"
        time.sleep(0.2)
