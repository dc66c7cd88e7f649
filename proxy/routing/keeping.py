"""What may be kept of the files that tasks make: the section `results` of routes.yaml.

Owns its grammar; what is wrong beyond it is `loader.hosting`'s.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from proxy.routing.scalars import BucketUrl, FileLimit, Flag, Name, ObjectPrefix, Positive, Secret, Text
from proxy.routing.section import Section

RESULT_SIZE = 200 << 20  # bytes of one file


class ObjectStore(Section):
    """A bucket that speaks S3."""

    endpoint: BucketUrl = Field(description="Its host may begin with {bucket}.")
    bucket: Name
    region: Name = "us-east-1"
    prefix: ObjectPrefix = Field(default="", description="In front of the names of objects.")
    access_key: Secret
    secret_key: Secret


class Keep(Section):
    """One of the two."""

    directory: Text | None = Field(
        default=None, description="Within the data folder, if it is not absolute; shared by all nodes."
    )
    s3: ObjectStore | None = None


class Results(Section):
    """Files that tasks have made are fetched before their vendor forgets them, and served by us."""

    keep: Keep
    days: Positive = 30
    size_limit: FileLimit = Field(default=RESULT_SIZE, description="Larger ones stay at their vendor.")
    rewrite: Flag = Field(default=False, description="Answers show our links instead of the vendor's.")
    tasks: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="Of these families; of all that tell where their files are, if not said."
    )
