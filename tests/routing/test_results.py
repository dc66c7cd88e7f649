"""The section `results`: where files of tasks are kept, and what a bucket's requests look like."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from proxy.cli.difference import UNSEEN, difference
from proxy.routing.buckets import Bucket
from proxy.snapshot import Snapshot, secrets_in
from tests.routing.compiling import MINIMAL, compile_text, mistakes, table, warnings

S3 = """\
results:
  keep:
    s3: {endpoint: "https://{bucket}.oss.example.com/", bucket: files, region: cn-1, access_key: "${env:AK}",
         secret_key: "${env:SK}", prefix: made/}
"""
ENVIRON = {"OPENAI_API_KEY": "sk-canary-1", "AK": "ak", "SK": "canary-secret"}


def test_nothing_is_kept_where_the_file_does_not_say_so():
    assert table(MINIMAL).results is None


def test_a_directory():
    found = table(MINIMAL + "results: {keep: {directory: /srv/files}, days: 7, size_limit: 10 MiB}").results
    assert found is not None
    assert (found.directory, found.bucket, found.days, found.size_limit) == ("/srv/files", None, 7, 10 << 20)
    assert not found.rewrite and found.keeps("whatever")


def test_a_bucket_whose_secret_is_concealed():
    document = compile_text(MINIMAL + S3, ENVIRON).document
    snapshot = Snapshot.from_document(document)
    found = snapshot.table.results
    assert found is not None and found.bucket is not None and found.directory == ""
    assert found.bucket.endpoint == "https://{bucket}.oss.example.com"
    assert "canary-secret" in set(secrets_in(snapshot.table))
    assert "canary-secret" not in repr(found)


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ("results: {keep: {}}", "says one of 'directory' and 's3'"),
        ("results: {keep: {directory: ''}}", "is empty"),
        ("results: {keep: {directory: /x, s4: y}}", "s4"),
        ("results: {keep: {directory: /x}, days: 0}", "must be 1 or more"),
        ("results: {keep: {directory: /x}, size_limit: 6 GiB}", "at most 5120 MiB"),
        ("results: {keep: {directory: /x}, tasks: [sono]}", "task family 'sono' is not known"),
        (S3.replace("${env:SK}", "written"), "a secret is not written into the file"),
        (S3.replace("https://", "ftp://"), "must be a base URL"),
        (S3.replace("made/", "/made"), "does not begin with /"),
        (S3.replace("s3:", "directory: /x\n    s3:"), "says one of 'directory' and 's3'"),
    ],
)
def test_mistakes_have_a_place(section, what):
    found = mistakes(MINIMAL + section, ENVIRON)
    assert len(found) == 1 and what in found[0], found
    assert found[0][0].isdigit()


def test_a_station_without_tasks_and_a_bucket_in_the_clear_are_worth_a_warning():
    found = warnings(MINIMAL + S3.replace("https://", "http://"), ENVIRON)
    assert any("there are no tasks" in line for line in found)
    assert any("is not https" in line for line in found)


def test_a_family_that_tells_of_no_files_is_worth_a_warning():
    text = (
        MINIMAL + "tasks: {midjourney: {upstream: openai, task: {files: []}}}\nprices: {'*': {call: 1 USD}}\n"
    )
    text += "results: {keep: {directory: kept}, tasks: [midjourney]}"
    assert any("does not tell where its files are" in line for line in warnings(text))
    assert not any("files are" in line for line in warnings(text.replace(", task: {files: []}", "")))


def test_the_path_of_links_is_the_relays_own():
    found = mistakes(MINIMAL + 'routes: [{path: "/results/{id}", operation: chat}]')
    assert len(found) == 1 and "relay itself" in found[0]


def test_a_difference_shows_no_secret():
    old, new = (compile_text(MINIMAL + S3, ENVIRON | {"SK": secret}).document for secret in ("a", "b"))
    [change] = difference(old, new)
    assert change["members"] == {"bucket.secret": [None, UNSEEN]}
    [added] = difference(compile_text(MINIMAL).document, old)
    assert (added["what"], added["change"]) == ("results", "added")


def test_a_put_is_signed_as_awss_own_library_signs_it():
    """botocore 1.44's S3SigV4Auth, over the same request."""
    bucket = Bucket("http://127.0.0.1:9000", "us-east-1", "files", "made/", "AKIDEXAMPLE", "wJalrXUtnFEMI")
    at_ms = int(datetime(2026, 11, 22, 5, tzinfo=UTC).timestamp() * 1000)
    url, fields = bucket.request("PUT", "a_b-c", at_ms, digest="ab" * 32, more={"content-type": "image/png"})
    assert url == "http://127.0.0.1:9000/files/made/a_b-c"
    assert fields["x-amz-content-sha256"] == "ab" * 32
    assert "SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date" in fields["authorization"]
    assert fields["authorization"].endswith(
        "Signature=2ab0edfb14116e6f9a77bbddc61c94fbe88309d52cd045e353a9fee567a76c01"
    )


def test_a_bucket_may_be_in_the_hosts_name():
    bucket = Bucket("https://{bucket}.oss.example.com", "cn-1", "files", "", "ak", "sk")
    assert bucket.request("GET", "x", 0)[0] == "https://files.oss.example.com/x"
