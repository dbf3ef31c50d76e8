"""What counts as a difference: only what we own, however the API server spells it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.controller.apply import difference, stamped

WANTED: dict[str, Any] = {
    "metadata": {"name": "shop", "labels": {"a": "1"}},
    "spec": {
        "replicas": 3,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "postgres",
                        "image": "one",
                        "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}},
                        "ports": [{"containerPort": 5432}, {"containerPort": 8008}],
                        "command": ["a", "b"],
                    }
                ],
                "nodeSelector": {},
            }
        },
    },
}


def as_stored() -> dict[str, Any]:
    """The same object with what the API server adds and how it spells quantities."""
    live = copy.deepcopy(WANTED)
    live["metadata"] |= {"uid": "u", "resourceVersion": "7", "labels": {"a": "1", "b": "theirs"}}
    spec = live["spec"]["template"]["spec"]
    del spec["nodeSelector"]
    spec["restartPolicy"] = "Always"
    container = spec["containers"][0]
    container["resources"]["limits"] = {"cpu": "1", "memory": "1Gi"}
    container["ports"] = [
        {"containerPort": 8008, "protocol": "TCP"},
        {"containerPort": 5432, "protocol": "TCP"},
    ]
    container["terminationMessagePath"] = "/dev/termination-log"
    return live


def test_what_the_api_server_fills_in_is_no_difference() -> None:
    assert difference(WANTED, as_stored()) is None


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("spec", "replicas"), 2, "spec.replicas"),
        (("metadata", "labels", "a"), "2", "metadata.labels.a"),
        (
            ("spec", "template", "spec", "containers", 0, "image"),
            "two",
            "spec.template.spec.containers[postgres].image",
        ),
        (
            ("spec", "template", "spec", "containers", 0, "resources", "limits", "memory"),
            "2Gi",
            "spec.template.spec.containers[postgres].resources.limits.memory",
        ),
        (
            ("spec", "template", "spec", "containers", 0, "command"),
            ["b", "a"],
            "spec.template.spec.containers[postgres].command[0]",
        ),
        (
            ("spec", "template", "spec", "containers", 0, "ports"),
            [{"containerPort": 5432}],
            "spec.template.spec.containers[postgres].ports",
        ),
    ],
)
def test_a_change_of_what_is_ours_is_found_where_it_is(
    path: tuple[Any, ...], value: Any, told: str
) -> None:
    live = as_stored()
    place = live
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert difference(WANTED, live) == told


def test_what_is_gone_is_a_difference() -> None:
    live = as_stored()
    del live["spec"]["template"]
    assert difference(WANTED, live) == "spec.template"


def test_texts_that_are_no_quantities_are_compared_as_they_are() -> None:
    assert difference({"a": "true"}, {"a": True}) == "a"
    assert difference({"a": "x"}, {"a": "y"}) == "a"
    assert difference({"a": 5432}, {"a": "5432"}) is None


def test_the_hash_tells_a_field_that_is_no_longer_rendered() -> None:
    before = stamped({**WANTED, "extra": 1})
    after = stamped(WANTED)
    path = f"metadata.annotations.{names.ANNOTATION_HASH}"
    assert difference(after, before) == path
    assert stamped(copy.deepcopy(WANTED)) == after
