"""The optional cloud resources fit the code: permissions are read out of it; no provider can be asked here."""

import ast
import re
import shutil
import subprocess
from typing import Any

import hcl2
from manifests import KUSTOMIZE, ROOT, needs_kubectl, pods, render

TERRAFORM = ROOT / "infra/terraform"
# What S3 and SQS ask for, by the boto3 call. An upload in parts that fails is aborted.
PERMISSIONS = {
    "get_object": {"s3:GetObject"}, "head_object": {"s3:GetObject"}, "download_file": {"s3:GetObject"},
    "download_fileobj": {"s3:GetObject"}, "put_object": {"s3:PutObject"}, "delete_object": {"s3:DeleteObject"},
    "delete_objects": {"s3:DeleteObject"}, "list_objects_v2": {"s3:ListBucket"}, "head_bucket": {"s3:ListBucket"},
    "upload_file": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "upload_fileobj": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "create_multipart_upload": {"s3:PutObject"}, "upload_part": {"s3:PutObject"},
    "complete_multipart_upload": {"s3:PutObject"}, "list_multipart_uploads": {"s3:ListBucketMultipartUploads"},
    "abort_multipart_upload": {"s3:AbortMultipartUpload"},
    "receive_message": {"sqs:ReceiveMessage"}, "delete_message": {"sqs:DeleteMessage"},
    "delete_message_batch": {"sqs:DeleteMessage"}, "change_message_visibility": {"sqs:ChangeMessageVisibility"},
    "change_message_visibility_batch": {"sqs:ChangeMessageVisibility"},
}  # fmt: skip
EVENTS = {"sqs:ReceiveMessage", "sqs:DeleteMessage"}


def unquoted(node: Any) -> Any:
    """What hcl2 read, without the quotes it keeps."""
    if isinstance(node, dict):
        return {key.strip('"'): unquoted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [unquoted(item) for item in node]
    return node.strip('"') if isinstance(node, str) else node


def aws_calls() -> set[str]:
    """Names of the operations that modules which load boto3 call on its clients; benchmarks run under no role."""
    from botocore import xform_name
    from botocore.session import get_session

    known = {"upload_file", "upload_fileobj", "download_file", "download_fileobj"}
    for service in ("s3", "sqs"):
        known |= {xform_name(name) for name in get_session().get_service_model(service).operation_names}
    called = set()
    paths = [path for path in (ROOT / "oral_ray").rglob("*.py") if path.parent.name != "bench"]
    sources = {path: path.read_text() for path in paths}
    for tree in (ast.parse(text) for text in sources.values() if re.search(r"\b(boto3|botocore)\b", text)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called.add(node.func.attr)
                if node.func.attr in ("_ask", "_pages", "get_paginator", "generate_presigned_url", "get_waiter"):
                    called |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "create_transfer_manager":
                called |= {"upload_file", "download_file"}
    return called & known


def test_the_role_may_do_what_the_code_calls_and_nothing_else():
    document = unquoted(hcl2.loads((TERRAFORM / "iam.tf").read_text()))
    [policy] = [
        d["aws_iam_policy_document"]["store"] for d in document["data"] if "store" in d["aws_iam_policy_document"]
    ]
    granted = {action for statement in policy["statement"] for action in statement["actions"]}
    [events] = [block["statement"]["content"][0]["actions"] for block in policy["dynamic"]]
    calls = aws_calls()
    assert calls >= {"get_object", "put_object", "list_objects_v2", "delete_object"}
    assert calls <= PERMISSIONS.keys(), "a new call: say in PERMISSIONS what it asks for"
    needed = set().union(*(PERMISSIONS[call] for call in calls))
    assert granted == {action for action in needed if action.startswith("s3:")}
    assert set(events) == ({action for action in needed if action.startswith("sqs:")} or EVENTS)


def test_terraform_reads_as_terraform_and_names_only_what_it_declares():
    parsed = {path.name: unquoted(hcl2.loads(path.read_text())) for path in sorted(TERRAFORM.glob("*.tf"))}
    declared = {f"var.{name}" for block in parsed["variables.tf"]["variable"] for name in block}
    for tree in parsed.values():
        for about, prefix in (("resource", ""), ("data", "data.")):
            for block in tree.get(about, ()):
                declared |= {f"{prefix}{kind}.{name}" for kind, names in block.items() for name in names}
    text = "\n".join(re.sub(r"(?m)^\s*#.*$", "", path.read_text()) for path in TERRAFORM.glob("*.tf"))
    used = set(re.findall(r"\bvar\.\w+|\b(?<!\.)(?:data\.)?aws_\w+\.\w+", text))
    assert used and used <= declared
    assert {name for name in declared if name.startswith("var.")} <= used
    if shutil.which("terraform"):
        done = subprocess.run(["terraform", "fmt", "-check", "-diff", TERRAFORM], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")


@needs_kubectl
def test_the_accounts_that_terraform_trusts_are_those_of_the_manifests():
    variables = unquoted(hcl2.loads((TERRAFORM / "variables.tf").read_text()))["variable"]
    defaults = {name: block.get("default") for variable in variables for name, block in variable.items()}
    accounts = {pod.spec["serviceAccountName"] for pod in pods(render(KUSTOMIZE / "overlays/production")) if pod.role}
    assert set(defaults["service_accounts"]) == accounts
    assert defaults["namespace"] == "oral-ray"
