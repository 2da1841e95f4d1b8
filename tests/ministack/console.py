"""What an operator does in the cloud console or with its tools, on boto3."""

import dataclasses
import json
import os
import pathlib
import time

import boto3
from botocore.config import Config

from cloud import REGION

BUCKET = "firmware"
POLICY = "otandem-device"
SHADOW_POLICY = "otandem-shadows"
ROLE = "otandem-images"
MANUAL = pathlib.Path(__file__).resolve().parent.parent.parent / "docs/services.md"
ENDED = {"SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "REMOVED", "CANCELED"}


@dataclasses.dataclass
class Identity:
    """A device's name, and the files by which it proves it."""

    thing: str
    cert: pathlib.Path
    key: pathlib.Path


def device_policy(account):
    """What the documentation gives a device: enough for every job, and nothing else."""
    thing = "${iot:Connection.Thing.ThingName}"
    base = f"arn:aws:iot:{REGION}:{account}"
    jobs = f"$aws/things/{thing}/jobs"
    answers = ("start-next/accepted", "start-next/rejected", "*/update/accepted", "*/update/rejected", "notify-next")
    return {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "iot:Connect", "Resource": f"{base}:client/{thing}"},
        {"Effect": "Allow", "Action": "iot:Publish",
         "Resource": [f"{base}:topic/{jobs}/start-next", f"{base}:topic/{jobs}/*/update"]},
        {"Effect": "Allow", "Action": "iot:Subscribe", "Resource": [f"{base}:topicfilter/{jobs}/{t}" for t in answers]},
        {"Effect": "Allow", "Action": "iot:Receive", "Resource": [f"{base}:topic/{jobs}/{t}" for t in answers]},
    ]}


def shadow_policy(account):
    """What docs/services.md says that shadows need, word for word."""
    blocks = MANUAL.read_text().split("```json\n")[1:]
    text = next(block.split("```")[0] for block in blocks if block.startswith('{ "Version"'))
    return text.replace("REGION", REGION).replace("ACCOUNT", account)


class Console:
    """An operator with an account of their own, not the root of the account."""

    def __init__(self, gateway):
        root = boto3.Session("test", "test", region_name=REGION)
        self.gateway = gateway
        self.certificates = {}
        self.account = self._client(root, "sts").get_caller_identity()["Account"]
        iam = self._client(root, "iam")
        iam.create_user(UserName="operator")
        rights = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": ["iot:*", "s3:*", "iam:CreateRole", "iam:PutRolePolicy", "iam:PassRole"],
             "Resource": "*"}]}
        iam.put_user_policy(UserName="operator", PolicyName="fleet", PolicyDocument=json.dumps(rights))
        key = iam.create_access_key(UserName="operator")["AccessKey"]
        operator = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=REGION)
        self.iot, self.s3, self.iam, self.data = (
            self._client(operator, name) for name in ("iot", "s3", "iam", "iot-data"))

    def _client(self, session, name):
        config = Config(signature_version="s3v4", s3={"addressing_style": "path"}) if name == "s3" else None
        return session.client(name, endpoint_url=self.gateway, config=config)

    def prepare_account(self):
        """Once: the policy for devices, the bucket, and the role in whose name URLs are signed."""
        self.iot.create_policy(policyName=POLICY, policyDocument=json.dumps(device_policy(self.account)))
        self.iot.create_policy(policyName=SHADOW_POLICY, policyDocument=shadow_policy(self.account))
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        trust = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "iot.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
        read = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}]}
        role = self.iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))
        self.iam.put_role_policy(RoleName=ROLE, PolicyName="read-images", PolicyDocument=json.dumps(read))
        self.role_arn = role["Role"]["Arn"]

    def add_device(self, thing, folder):
        """A thing with keys and certificate."""
        self.iot.create_thing(thingName=thing)
        made = self.iot.create_keys_and_certificate(setAsActive=True)
        self.iot.attach_policy(policyName=POLICY, target=made["certificateArn"])
        self.certificates[thing] = made["certificateArn"]
        self.iot.attach_thing_principal(thingName=thing, principal=made["certificateArn"])
        folder.mkdir(parents=True, exist_ok=True)
        identity = Identity(thing, folder / f"{thing}.pem", folder / f"{thing}.key")
        identity.cert.write_text(made["certificatePem"])
        descriptor = os.open(identity.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(made["keyPair"]["PrivateKey"])
        return identity

    def allow_shadows(self, thing):
        """Beside jobs, the device may use its shadows."""
        self.iot.attach_policy(policyName=SHADOW_POLICY, target=self.certificates[thing])

    def desire(self, thing, desired, shadow=None):
        """Changes what is desired of a device."""
        named = {"shadowName": shadow} if shadow else {}
        self.data.update_thing_shadow(thingName=thing, payload=json.dumps({"state": {"desired": desired}}), **named)

    def state(self, thing, shadow=None):
        """The halves of a shadow; nothing if there is none."""
        named = {"shadowName": shadow} if shadow else {}
        try:
            found = self.data.get_thing_shadow(thingName=thing, **named)
        except self.data.exceptions.ResourceNotFoundException:
            return {}
        return json.loads(found["payload"].read())["state"]

    def watch_state(self, thing, holds, limit, shadow=None):
        """Waits until the shadow is so, or the time is over; how it is then."""
        end = time.monotonic() + limit
        while True:
            state = self.state(thing, shadow)
            if holds(state) or time.monotonic() > end:
                return state
            # The data plane can only be asked.
            time.sleep(0.1)

    def add_claim(self, template, folder):
        """A provisioning template that names things by their serial number, and a factory's store with a claim for it."""
        base = f"arn:aws:iot:{REGION}:{self.account}"
        body = {
            "Parameters": {"SerialNumber": {"Type": "String"}, "AWS::IoT::Certificate::Id": {"Type": "String"}},
            "Resources": {
                "thing": {"Type": "AWS::IoT::Thing", "Properties": {"ThingName": {"Ref": "SerialNumber"}}},
                "certificate": {"Type": "AWS::IoT::Certificate", "Properties": {
                    "CertificateId": {"Ref": "AWS::IoT::Certificate::Id"}, "Status": "ACTIVE"}},
                "policy": {"Type": "AWS::IoT::Policy", "Properties": {"PolicyName": POLICY}},
            },
            "DeviceConfiguration": {"site": "north"},
        }
        trust = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "iot.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
        register = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "iot:*", "Resource": "*"}]}
        role = self.iam.create_role(RoleName=f"{template}-role", AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        self.iam.put_role_policy(RoleName=role["RoleName"], PolicyName="register", PolicyDocument=json.dumps(register))
        self.iot.create_provisioning_template(
            templateName=template, templateBody=json.dumps(body), enabled=True, provisioningRoleArn=role["Arn"])
        asked = ["$aws/certificates/create/json", f"$aws/provisioning-templates/{template}/provision/json"]
        rights = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "iot:Connect", "Resource": f"{base}:client/*-fp"},
            {"Effect": "Allow", "Action": "iot:Publish", "Resource": [f"{base}:topic/{t}" for t in asked]},
            {"Effect": "Allow", "Action": "iot:Subscribe", "Resource": [f"{base}:topicfilter/{t}/*" for t in asked]},
            {"Effect": "Allow", "Action": "iot:Receive", "Resource": [f"{base}:topic/{t}/*" for t in asked]},
        ]}
        self.iot.create_policy(policyName=f"{template}-claim", policyDocument=json.dumps(rights))
        made = self.iot.create_keys_and_certificate(setAsActive=True)
        self.iot.attach_policy(policyName=f"{template}-claim", target=made["certificateArn"])
        folder.mkdir(parents=True, mode=0o700)
        for name, text in (("cert.pem", made["certificatePem"]), ("key.pem", made["keyPair"]["PrivateKey"])):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)

    def wait_thing(self, thing, limit, broken):
        """The certificates of a thing, once it is registered."""
        end = time.monotonic() + limit
        while True:
            things = [t["thingName"] for t in self.iot.list_things()["things"]]
            found = self.iot.list_thing_principals(thingName=thing)["principals"] if thing in things else []
            if found:
                return found
            if broken() or time.monotonic() > end:
                raise AssertionError(f"no thing {thing} within {limit} s: {broken()}")
            # The control plane can only be asked.
            time.sleep(0.1)

    def upload(self, key, path):
        """Puts a file into the bucket; what stands for its URL in a job document."""
        with path.open("rb") as body:
            self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return self.placeholder(key)

    def put(self, key, body):
        """Puts bytes into the bucket."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)

    @staticmethod
    def placeholder(key):
        """What stands for the URL of an object in a job document."""
        return "${aws:iot:s3-presigned-url-v2:https://s3.%s.amazonaws.com/%s/%s}" % (REGION, BUCKET, key)

    def create_job(self, job, thing, document, url_life=3600):
        """A job for one device, whose URLs live for `url_life` seconds each (60 to 3600)."""
        self.iot.create_job(
            jobId=job, targets=[f"arn:aws:iot:{REGION}:{self.account}:thing/{thing}"], document=json.dumps(document),
            presignedUrlConfig={"roleArn": self.role_arn, "expiresInSec": url_life})

    def execution(self, job, thing):
        """What the cloud knows of a device's run of a job: status, statusDetails, versionNumber."""
        found = self.iot.describe_job_execution(jobId=job, thingName=thing)["execution"]
        details = found.get("statusDetails", {})
        found["statusDetails"] = details.get("detailsMap", details)
        return found

    def watch(self, job, thing, limit, broken):
        """Follows an execution to its end: (every status seen, in order; the last state).

        `broken()` says why the device cannot end it any more, or nothing."""
        seen, end = [], time.monotonic() + limit
        while True:
            now = self.execution(job, thing)
            if not seen or seen[-1] != now["status"]:
                seen.append(now["status"])
            if now["status"] in ENDED:
                return seen, now
            why = broken()
            if why:
                raise AssertionError(f"{job}: {why}; the cloud has {now['status']} {now['statusDetails']}")
            if time.monotonic() > end:
                raise AssertionError(f"{job}: no end within {limit} s; the cloud has {now['status']} {now['statusDetails']}")
            # The control plane can only be asked.
            time.sleep(0.1)

    def job_status(self, job):
        return self.iot.describe_job(jobId=job)["job"]["status"]
