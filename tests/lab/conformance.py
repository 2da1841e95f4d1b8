#!/usr/bin/env python3
"""Holds the lab to the official device SDK: every answer of the Jobs service is compared with what AWS documents.

usage: conformance.py [PATH/TO/otandem-lab]        (needs: pip install awsiotsdk==1.31.0)

Starts the lab, connects over mutual TLS, and exits non-zero on the first difference.
"""

import json
import queue
import subprocess
import sys
import tempfile
import uuid
from concurrent.futures import Future

from awscrt import mqtt
from awsiot import iotjobs, mqtt_connection_builder

THING = "conformance"
LIMIT = 10  # seconds; nothing here takes longer


class Lab:
    """The lab's process and its line protocol."""

    def __init__(self, program, folder):
        command = [program, "--dir", folder, "--thing", THING]
        for topic in ("get", "describe", "notify"):
            command += ["--allow", topic]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.banner = json.loads(self.process.stdout.readline())

    def do(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if not answer["ok"]:
            raise AssertionError(f"{line}: {answer['error']}")
        return answer["result"]

    def stop(self):
        self.process.stdin.close()
        return self.process.wait(LIMIT)


def same(what, got, wanted):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r}, wanted {wanted!r}")
    print(f"ok  {what}: {got!r}")


class Device:
    """The official SDK's connection and jobs client."""

    def __init__(self, banner):
        files = banner["things"][0]
        self.connection = mqtt_connection_builder.mtls_from_path(
            endpoint=banner["mqtt"]["host"], port=banner["mqtt"]["port"], ca_filepath=banner["ca"],
            cert_filepath=files["cert"], pri_key_filepath=files["key"],
            client_id=THING, clean_session=True, keep_alive_secs=30)
        self.connection.connect().result(LIMIT)
        self.jobs = iotjobs.IotJobsClient(self.connection)
        self.notices = queue.Queue()
        self.lists = queue.Queue()
        self.subscribe(self.jobs.subscribe_to_next_job_execution_changed_events,
                       iotjobs.NextJobExecutionChangedSubscriptionRequest(thing_name=THING), self.notices.put)
        self.subscribe(self.jobs.subscribe_to_job_executions_changed_events,
                       iotjobs.JobExecutionsChangedSubscriptionRequest(thing_name=THING), self.lists.put)

    def subscribe(self, call, request, callback):
        future, topic = call(request, mqtt.QoS.AT_LEAST_ONCE, callback)
        future.result(LIMIT)
        return topic

    def ask(self, name, subscription, request):
        """('accepted' | 'rejected', answer) of one request."""
        answer = Future()
        token = request.client_token = str(uuid.uuid4())
        topics = [
            self.subscribe(getattr(self.jobs, f"subscribe_to_{name}_{kind}"), subscription,
                           lambda a, kind=kind: answer.done() or answer.set_result((kind, a)))
            for kind in ("accepted", "rejected")
        ]
        getattr(self.jobs, f"publish_{name}")(request, mqtt.QoS.AT_LEAST_ONCE).result(LIMIT)
        kind, body = answer.result(LIMIT)
        if body.client_token != token:
            raise AssertionError(f"{name}: another client token came back")
        if body.timestamp is None:
            raise AssertionError(f"{name}: no timestamp")
        for topic in topics:
            self.connection.unsubscribe(topic)[0].result(LIMIT)
        return kind, body

    def pending(self):
        return self.ask("get_pending_job_executions",
                        iotjobs.GetPendingJobExecutionsSubscriptionRequest(thing_name=THING),
                        iotjobs.GetPendingJobExecutionsRequest(thing_name=THING))

    def start_next(self, **fields):
        return self.ask("start_next_pending_job_execution",
                        iotjobs.StartNextPendingJobExecutionSubscriptionRequest(thing_name=THING),
                        iotjobs.StartNextPendingJobExecutionRequest(thing_name=THING, **fields))

    def describe(self, job, **fields):
        return self.ask("describe_job_execution",
                        iotjobs.DescribeJobExecutionSubscriptionRequest(thing_name=THING, job_id=job),
                        iotjobs.DescribeJobExecutionRequest(thing_name=THING, job_id=job, **fields))

    def update(self, job, **fields):
        return self.ask("update_job_execution",
                        iotjobs.UpdateJobExecutionSubscriptionRequest(thing_name=THING, job_id=job),
                        iotjobs.UpdateJobExecutionRequest(thing_name=THING, job_id=job, **fields))

    def next_notice(self):
        notice = self.notices.get(timeout=LIMIT)
        return notice.execution.job_id if notice.execution else None


def queueing(lab, device):
    lab.do(f'create j1 {THING} {{"operation":"fota","n":1}}')
    same("notify-next of the first job", device.next_notice(), "j1")
    lab.do(f'create j2 {THING} {{"operation":"fota","n":2}}')
    same("notify lists both", [[s.job_id for s in device.lists.get(timeout=LIMIT).jobs["QUEUED"]] for _ in range(2)],
         [["j1"], ["j1", "j2"]])
    kind, answer = device.pending()
    same("get-pending", (kind, [s.job_id for s in answer.queued_jobs], answer.in_progress_jobs),
         ("accepted", ["j1", "j2"], []))


def starting(device):
    kind, answer = device.start_next(status_details={"step": "start"}, step_timeout_in_minutes=5)
    e = answer.execution
    same("start-next", (kind, e.job_id, e.thing_name, e.status, e.version_number, e.execution_number),
         ("accepted", "j1", THING, "IN_PROGRESS", 2, 1))
    same("its document and details", (e.job_document, e.status_details),
         ({"operation": "fota", "n": 1}, {"step": "start"}))
    kind, answer = device.start_next(status_details={"step": "again"})
    same("start-next of a running job leaves it alone",
         (answer.execution.job_id, answer.execution.status_details, answer.execution.version_number),
         ("j1", {"step": "start"}, 2))
    kind, answer = device.describe("$next")
    same("describe $next", (kind, answer.execution.job_id), ("accepted", "j1"))
    kind, answer = device.pending()
    same("get-pending of a running job", ([s.job_id for s in answer.in_progress_jobs],
                                          [s.job_id for s in answer.queued_jobs]), (["j1"], ["j2"]))


def state(answer):
    s = answer.execution_state
    return s and (s.status, s.status_details, s.version_number)


def updating(device):
    kind, answer = device.update("j1", status="SUCCEEDED", expected_version=77)
    same("stale version", (kind, answer.code, state(answer)),
         ("rejected", "VersionMismatch", ("IN_PROGRESS", {"step": "start"}, 2)))
    kind, answer = device.update("j1", status="IN_PROGRESS", status_details={"progress": "50"}, expected_version=2,
                                 include_job_execution_state=True, include_job_document=True)
    same("progress replaces all details", (kind, state(answer), answer.job_document),
         ("accepted", ("IN_PROGRESS", {"progress": "50"}, 3), {"operation": "fota", "n": 1}))
    kind, answer = device.update("j1", status="IN_PROGRESS", status_details={"bad key": "v"})
    same("key that breaks the pattern", (kind, answer.code), ("rejected", "InvalidRequest"))
    kind, answer = device.update("j1", status="IN_PROGRESS", step_timeout_in_minutes=10081)
    same("step timeout out of range", (kind, answer.code), ("rejected", "InvalidRequest"))
    kind, answer = device.update("j1", status="SUCCEEDED", execution_number=9)
    same("wrong execution number", (kind, answer.code), ("rejected", "ResourceNotFound"))
    kind, answer = device.update("j1", status="SUCCEEDED", include_job_execution_state=True)
    same("success", (kind, state(answer)), ("accepted", ("SUCCEEDED", {"progress": "50"}, 4)))
    same("notify-next after it", device.next_notice(), "j2")
    kind, answer = device.update("j1", status="FAILED")
    same("update after the end", (kind, answer.code, state(answer)),
         ("rejected", "InvalidStateTransition", ("SUCCEEDED", {"progress": "50"}, 4)))
    kind, answer = device.describe("j1")
    same("describe after the end", (kind, answer.code), ("rejected", "TerminalStateReached"))


def cancelling(lab, device):
    device.start_next()
    lab.do("cancel j2 force")
    same("notify-next of an empty queue", device.next_notice(), None)
    kind, answer = device.update("j2", status="SUCCEEDED")
    same("update of a cancelled job", (kind, answer.code, answer.execution_state.status),
         ("rejected", "InvalidStateTransition", "CANCELED"))
    lab.do("delete j2 force")
    kind, answer = device.update("j2", status="SUCCEEDED")
    same("update of a deleted job", (kind, answer.code), ("rejected", "ResourceNotFound"))
    kind, answer = device.start_next()
    same("start-next of an empty queue", (kind, answer.execution and answer.execution.job_id), ("accepted", None))


def timing_out(lab, device):
    lab.do(f"create j3 {THING} {{}}")
    same("notify-next", device.next_notice(), "j3")
    device.start_next(step_timeout_in_minutes=1)
    lab.do("advance 61")
    same("notify-next after a time-out", device.next_notice(), None)
    same("its status", lab.do("list")[-1]["status"], "TIMED_OUT")


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/debug/otandem-lab"
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(program, folder)
        try:
            device = Device(lab.banner)
            queueing(lab, device)
            starting(device)
            updating(device)
            cancelling(lab, device)
            timing_out(lab, device)
            device.connection.disconnect().result(LIMIT)
            counters = lab.do("counters")
            same("no violation, no offence", (counters["violations"], counters["offences"]), ([], []))
            same("notices without anybody waiting for them", device.notices.qsize(), 0)
        finally:
            code = lab.stop()
        same("exit code of the lab", code, 0)
    print("the lab and the official SDK agree")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a difference
        print(f"DIFFERENCE: {error!r}", file=sys.stderr)
        sys.exit(1)
