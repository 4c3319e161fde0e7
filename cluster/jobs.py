"""A run as a job of Ray's: handed to a cluster, followed, found again.

By Ray's JobSubmissionClient (HTTP), so this machine need not be a node of the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from rayward.cluster.reach import dashboard_of
from rayward.cluster.run_name import run_name
from rayward.configs.load import ConfigError

REQUEST_S = 60
"""Longest wait for the answer to a request."""
LOST_S = 120
"""Time without an answer after which a job is not followed any more."""
QUIET_S = 20
"""Time without a word after which the head is asked whether it is there."""
LOG_TRIES = 5
"""Connections for the log of a job that has ended."""
CHATTY = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
)
"""Loggers of Ray that tell of each request and upload."""
RUN = "rayward_run"
"""Metadata of a job: the run folder that it works on."""
STOPPED = 130
"""Exit status for a job that was stopped, as of a command that Ctrl-C has ended."""


class _Client(JobSubmissionClient):
    """Ray's own would wait for an answer without an end."""

    def _do_request(self, *arguments: Any, **named: Any) -> requests.Response:
        return super()._do_request(*arguments, **{"timeout": REQUEST_S, **named})


class Jobs:
    """The jobs of a cluster. ConfigError, in a sentence, where it cannot be asked."""

    def __init__(self, address: str, named_by: str) -> None:
        self.url = dashboard_of(address, named_by)
        # Ray takes this one before an address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.url
        for name in CHATTY:
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        self.client = _Client(self.url)

    def submit(
        self, command: str, name: str, folder: str, files: Path, variables: Mapping[str, str]
    ) -> str:
        """Hand over the run of `folder`; the job's id. ConfigError where a job is at work on it.

        `files`: the folder that the job starts in, sent to the cluster.
        """
        before = self.of_run(folder)
        for job_id, status in before.items():
            if not status.is_terminal():
                raise self._at_work(folder, job_id)
        base = run_name(name, folder)
        numbers = [job_id.removeprefix(f"{base}-") for job_id in before]
        last = max((int(number) for number in numbers if number.isdigit()), default=0)
        job_id = f"{base}-{last + 1}"
        try:
            return self.client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                runtime_env={"working_dir": str(files), "env_vars": dict(variables)},
                metadata={RUN: folder},
            )
        except RuntimeError as error:
            # Ray takes an id once: of two that ask at the same time one is refused.
            if "already exists" in str(error):
                raise self._at_work(folder, job_id) from None
            if "No available agent" in str(error):
                raise TimeoutError(
                    f"the head at {self.url} takes no jobs: its agent is not up; where another Ray "
                    "runs on that machine, start it with --dashboard-agent-listen-port PORT"
                ) from None
            raise

    def of_run(self, folder: str) -> dict[str, JobStatus]:
        """Ids of the jobs that were submitted for a run folder, and how they are."""
        return {
            job.submission_id: job.status
            for job in self.client.list_jobs()
            if job.submission_id and (job.metadata or {}).get(RUN) == folder
        }

    def find(self, job_id: str) -> JobDetails:
        """ConfigError where there is no such job."""
        try:
            return self.client.get_job_info(job_id)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            raise ConfigError(
                f"{self.url} has no job {job_id}; ray job list --address {self.url} shows all"
            ) from None

    def follow(self, job_id: str) -> int:
        """Print the job's log as it grows, until the job ends; its exit status.

        TimeoutError where the cluster does not answer any more; ConfigError where it has forgotten
        the job, as a head does that was started anew.
        """
        log, failing_since = _Log(self.client, job_id), None
        while True:
            try:
                job = self.find(job_id)
                failing_since = None
                if whole := log.read():
                    job = self.find(job_id)
                # Of a node that is gone the log is not to be had.
                if job.status.is_terminal() and (whole or log.broken >= LOG_TRIES):
                    return self._ended(job, job_id)
            except BrokenPipeError:  # nobody reads what is printed
                raise
            except (requests.RequestException, OSError, RuntimeError):
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > LOST_S:
                    raise TimeoutError(
                        f"{self.url} has not answered for {LOST_S} s; the job may go on: "
                        f"{self.again(job_id)}"
                    ) from None
            time.sleep(1)

    def again(self, job_id: str) -> str:
        """How to follow a job, and how to stop it."""
        return (
            f"follow it with rayward submit --attach {job_id} --address {self.url}, stop it with "
            f"ray job stop {job_id} --address {self.url}"
        )

    def _at_work(self, folder: str, job_id: str) -> ConfigError:
        return ConfigError(
            f"job {job_id} is at work on {folder}, and two would overwrite each other: "
            f"{self.again(job_id)}"
        )

    def _ended(self, job: JobDetails, job_id: str) -> int:
        if job.status == JobStatus.SUCCEEDED:
            return 0
        if job.status == JobStatus.STOPPED:
            print(f"rayward: job {job_id} was stopped; submit it again to go on", file=sys.stderr)
            return STOPPED
        status = job.driver_exit_code
        if status is None:  # it has not begun, or its node was lost: the log says nothing of it
            print(f"rayward: job {job_id} failed: {job.message}", file=sys.stderr)
        elif status == 127:
            print(
                f"rayward: job {job_id} failed: the cluster has no command rayward; install it in "
                "the cluster's image",
                file=sys.stderr,
            )
        else:
            print(f"rayward: job {job_id} ended with status {status}", file=sys.stderr)
        return status or 1


class _Log:
    """What of a job's log is printed; Ray sends it from its beginning each time."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self.client, self.job_id = client, job_id
        self.printed = 0
        """Characters."""
        self.broken = 0
        """Connections that broke, one after the other."""
        self.patience = 1
        """Times QUIET_S without a word after which another connection is tried."""

    def read(self) -> bool:
        """Print what is new; whether the log has ended, and no connection broke."""
        try:
            whole = asyncio.run(self._tail())
        except BrokenPipeError:
            raise
        except (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError):
            self.broken += 1
            return False
        self.broken = 0
        return whole

    async def _tail(self) -> bool:
        """The same, until the log ends (True), or it is better asked for anew.

        Raises where the connection has broken, or the head does not answer.
        """
        sent, quiet, parts = 0, 0, self.client.tail_job_logs(self.job_id)
        waiting = asyncio.ensure_future(anext(parts))
        while True:
            done, _ = await asyncio.wait([waiting], timeout=QUIET_S)
            if not done:
                # A connection that was cut in between tells nobody. Raises where the head is gone.
                await asyncio.to_thread(self.client.get_job_info, self.job_id)
                quiet += 1
                if quiet == self.patience:
                    # Seldom for a job that says nothing: the head notices only with its next word
                    # that nobody listens any more.
                    self.patience *= 2
                    return False
                continue
            try:
                text = waiting.result()
            except StopAsyncIteration:
                return True
            new, quiet = text[max(0, self.printed - sent) :], 0
            sent += len(text)
            if new:
                self.patience = 1
            self.printed = max(self.printed, sent)
            print(new, end="", flush=True)
            waiting = asyncio.ensure_future(anext(parts))
