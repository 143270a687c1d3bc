"""One set of `--storage-option` names for fsspec, obstore and Delta: those of fsspec's libraries, or object_store's."""

from __future__ import annotations

import os

from embedx.core.places import OBJECT_SCHEMES, Access, Url

NAMES: dict[str, dict[str, str]] = {
    "s3": {
        "key": "aws_access_key_id",
        "secret": "aws_secret_access_key",
        "token": "aws_session_token",
        "endpoint_url": "aws_endpoint",
        "region": "aws_region",
        "anon": "aws_skip_signature",
    },
    "gs": {
        "token": "google_service_account",
        "endpoint_url": "google_base_url",
        "anon": "google_skip_signature",
    },
    "az": {
        "account_name": "azure_storage_account_name",
        "account_key": "azure_storage_account_key",
        "sas_token": "azure_storage_sas_key",
        "tenant_id": "azure_storage_tenant_id",
        "client_id": "azure_storage_client_id",
        "client_secret": "azure_storage_client_secret",
        "anon": "azure_skip_signature",
    },
}
"""Name in fsspec's library (s3fs, gcsfs, adlfs) -> name in object_store."""

_STORE_ONLY = {"allow_http", "aws_allow_http"}
"""Fsspec needs no word for these."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def object_options(place: Url) -> dict[str, str]:
    """Return the options of a place as object_store names them, for obstore and Delta.

    What is not given comes from the environment, which both libraries read by themselves.
    """
    names = NAMES[place.scheme]
    options = {names.get(name, name.lower()): value for name, value in place.access.options}
    endpoint = options.get("aws_endpoint") or options.get("aws_endpoint_url") or _endpoint_of_environment(place)
    if endpoint and endpoint.startswith("http://"):
        # Both libraries refuse plain http unless told: whoever names such an endpoint has said so.
        options.setdefault("allow_http", "true")
    return options


def _endpoint_of_environment(place: Url) -> str:
    if place.scheme != "s3":
        return ""
    return next((value for name in _ENDPOINTS if (value := os.environ.get(name))), "")


def fsspec_options(access: Access, scheme: str) -> dict[str, str]:
    """Return the options for a file system of fsspec, in whichever of the two vocabularies they were given."""
    names = {theirs: ours for ours, theirs in NAMES.get(OBJECT_SCHEMES.get(scheme, ""), {}).items()}
    names |= {"aws_endpoint_url": "endpoint_url", "aws_default_region": "region"} if names else {}
    found = {names.get(name.lower(), name): value for name, value in access.options}
    return {name: value for name, value in found.items() if not (names and name.lower() in _STORE_ONLY)}
