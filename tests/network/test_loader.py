from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qraf.errors import InvalidTopology, TopologyFault
from qraf.network.loader import load, loads, schema
from qraf.network.topology import ServiceSpec
from qraf.records import RecallSettings
from tests.examples import examples
from tests.network.yaml_files import GOOD, faults, replaced

TOPOLOGIES = Path(__file__).parents[2] / "topologies"


def test_every_field_reaches_the_topology():
    desk = loads(GOOD, env={})
    assert (desk.name, desk.version, desk.ingress, desk.encoder, desk.dim) == ("desk", 1, "inbox", "minilm", 384)
    assert list(desk.nodes) == ["inbox", "manuals", "tickets", "writer"]
    assert desk.nodes["inbox"].sessions
    assert desk.nodes["inbox"].capacity_bytes == 512 * 2**20
    assert desk.nodes["manuals"].collections == ("manuals",)
    assert desk.nodes["manuals"].recall == RecallSettings(k1=1.2, b=0.75, previous=(0.5,))
    assert (desk.nodes["tickets"].half_life_s, desk.nodes["tickets"].bits) == (30 * 86400.0, 8)
    assert (desk.nodes["tickets"].rank, desk.nodes["manuals"].rank) == (16, 32)
    assert (desk.nodes["writer"].role, desk.nodes["writer"].host) == ("generator", "")
    assert [(link.source, link.target) for link in desk.links[:2]] == [("inbox", "manuals"), ("inbox", "tickets")]
    assert (desk.links[0].latency_ms, desk.links[0].bits, desk.links[2].bits) == (2, 8, 32)
    assert (desk.routing.max_visits, desk.routing.deadline_ms, desk.routing.weights.latency) == (4, 150, 0.5)
    assert desk.hosts["vault"].cpus == 2


def test_sources_and_targets_may_both_be_lists():
    text = replaced(
        (
            "  - {source: manuals, target: writer}\n  - {source: tickets, target: writer}\n",
            "  - {source: [manuals, tickets], target: writer}\n",
        )
    )
    assert [(link.source, link.target) for link in loads(text, env={}).links[2:]] == [
        ("manuals", "writer"),
        ("tickets", "writer"),
    ]


@pytest.mark.parametrize(
    ("holds", "sessions", "collections"),
    [
        ("sessions", True, ()),
        ("[a, b]", False, ("a", "b")),
        ("{sessions: true, collections: [a]}", True, ("a",)),
    ],
)
def test_the_three_forms_of_holds(holds: str, sessions: bool, collections: tuple[str, ...]):
    node = loads(replaced(("holds: [manuals]", f"holds: {holds}")), env={}).nodes["manuals"]
    assert (node.sessions, node.collections) == (sessions, collections)


def test_with_one_host_or_none_nodes_need_not_name_it():
    for hosts in ("", "hosts: {only: {}}\n"):
        text = f"version: 1\nname: x\n{hosts}nodes: {{a: {{role: memory, holds: sessions}}}}\ningress: a\n"
        assert loads(text, env={}).nodes["a"].host == ("only" if hosts else "main")


def test_five_different_faults_come_at_once_each_at_its_place():
    text = replaced(
        ("rank: 32", "rnak: 32"),
        ("cpus: 2", "cpus: many"),
        ("target: [manuals, tickets]", "target: [manuls, tickets]"),
        ("holds: [tickets]", "holds: [tickets], rank: 900"),
        ("ingress: inbox", "ingress: inbocks"),
    ).replace("bits: 8, rank: 16", "bits: 8")
    found = [str(fault) for fault in faults(text)]
    assert found == [
        "t.yaml:3:29: unknown key 'rnak' in `defaults`; did you mean 'rank'?",
        "t.yaml:6:17: `hosts.vault.cpus` must be a number, but is 'many'",
        "t.yaml:10:64: rank 900 is above the dimension 384 of encoder 'minilm'",
        "t.yaml:13:30: unknown node 'manuls'; did you mean 'manuals'?",
        "t.yaml:16:10: unknown node 'inbocks'; did you mean 'inbox'?",
    ]


def test_errors_survive_a_process_boundary():
    with pytest.raises(InvalidTopology) as caught:
        loads("version: 2\n", env={})
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.faults == caught.value.faults
    assert str(again) == str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("name: desk", "name: desk\nname: other", 3, "duplicate key 'name'; it is already on line 2"),
        ("  writer:", "  inbox:", 11, "duplicate key 'inbox'; it is already on line 8"),
        ("ingress: inbox\n", "", 1, "`ingress` is required, but is not there"),
        ("version: 1", "version: 2", 1, "`version` must be 1, but is 2"),
        ("role: generator", "role: genrator", 11, "did you mean 'generator'?"),
        ("host: front", "host: frnt", 8, "unknown host 'frnt'; did you mean 'front'?"),
        (", host: front", "", 8, "`nodes.inbox.host` is required when there are several hosts"),
        ("holds: [tickets], ", "", 10, "memory node 'tickets' holds nothing"),
        ("512MiB", "512MiBs", 8, "must be a size such as 512MiB or 2GB, but is '512MiBs'"),
        ("30d", "30 moons", 10, "must be a duration such as 30d, 12h or 90s"),
        ("k1: 1.2", "k1: -1", 9, "must be greater than or equal to 0, but is -1"),
        ("b: 0.75", "beta: 0.75", 9, "unknown key 'beta' in `nodes.manuals.recall`"),
        ("encoder: minilm", "encoder: mini", 3, "did you mean 'minilm'?"),
        ("model: smollm2-135m", "model: gpt", 11, "model 'gpt' is not embedded; write 'smollm2-135m'"),
        ("model: smollm2-135m", "url: http://h/v1", 11, "needs the name of its `model`"),
        ("model: smollm2-135m", "model: m, url: ftp://h", 11, "`url` must be an http or https address"),
        ("model: smollm2-135m", "holds: [x]", 11, "`holds` belongs to memory nodes, but 'writer' is not one"),
        ("rank: 16", "rank: 16, url: http://h", 10, "`url` belongs to generator nodes"),
        ("  - {source: manuals, target: writer}\n", "  - {source: manuals, target: manuals}\n", 14, "linked to itself"),
        ("target: [manuals, tickets]", "target: [manuals, manuals, tickets]", 13, "is there twice"),
        ("bits: 8}\n", "bits: 4, fidelity: 0.999}\n", 13, "4 bits are too few for fidelity 0.999 on links[0]"),
        ("rank: 16", "rank: 16, fidelity: 1", 10, "8 bits are too few for fidelity 1 on node 'tickets'"),
        ("bits: 8, rank: 16", "encoder: wordllama", 13, "dimensions, 384 (minilm) and 256 (wordllama)"),
        ("ingress: inbox", "ingress: writer", 16, "the ingress must be a memory node, but 'writer' is a generator"),
        ("cpus: 2", "gpus: 2", 6, "the hosts ask for 2 GPUs together, but there are 0"),
        ("cpus: 2", "device: cuda", 6, "wants cuda but no `gpus`"),
        ("cpus: 2", "replicas: 2", 6, "`replicas` above 1 is not available yet"),
        ("model: smollm2-135m", "scaling: {min: 1, max: 4}", 11, "scale `services.generate`"),
        (
            "model: smollm2-135m}",
            "model: m, url: http://h/v1}\nservices: {generate: {}}",
            12,
            "no generator node is without a `url`",
        ),
        (
            "ingress: inbox",
            "services:\n  correction:\n    scaling: {max: 2, min: 3}\ningress: inbox",
            18,
            "`scaling.min` of service 'correction' is 3, above its `scaling.max` 2",
        ),
        (
            "ingress: inbox",
            "services: {correction: {scaling: {max: 0}}}\ningress: inbox",
            16,
            "must be greater than or equal to 1, but is 0",
        ),
        ("ingress: inbox", "services: {corection: {}}\ningress: inbox", 16, "did you mean 'correction'?"),
        ("target: writer}", "target: writer, protect: {code: repetition}}", 14, "`protect` needs `noise`"),
        ("target: writer}", "target: writer, noise: {pauli: {x: 0.5, y: 1, z: 0}}}", 14, "not trace preserving: its"),
        ("target: writer}", "target: writer, noise: {depolarizing: 2}}", 14, "less than or equal to 1, but is 2"),
        ("name: desk", "name: desk desk", 2, "`name` must be a name of letters"),
        ("holds: sessions", "holds: [sessions]", 7, "no node holds sessions"),
        ("source: inbox", "source: 3", 13, "`links[0].source` must be a name"),
        ("name: desk", "name: !!python/object:os.system desk", 2, "tags are not supported"),
        ("name: desk", "name: [desk", 3, "not valid YAML"),
    ],
)  # fmt: skip
def test_a_fault_says_where_what_and_why(old: str, new: str, line: int, what: str):
    found = faults(replaced((old, new)))
    assert any(fault.line == line and what in str(fault) for fault in found), [str(fault) for fault in found]


def test_one_slip_is_one_fault():
    for old, new in [
        ("holds: sessions", "hols: sessions"),
        ("role: generator", "rol: generator"),
        ("ingress:", "ingres:"),
    ]:
        assert len(faults(replaced((old, new)))) == 1


def test_unreachable_nodes_and_a_missing_way_to_a_generator_are_told():
    text = replaced(
        ("target: [manuals, tickets]", "target: [manuals]"), ("  - {source: manuals, target: writer}\n", "")
    )
    found = [str(fault) for fault in faults(text)]
    assert "t.yaml:10:3: node 'tickets' cannot be reached from ingress 'inbox'" in found
    assert "t.yaml:11:3: node 'writer' cannot be reached from ingress 'inbox'" in found
    assert "t.yaml:15:10: no path from ingress 'inbox' to a generator" in found


def test_gpus_that_are_there_are_given():
    assert loads(replaced(("cpus: 2", "gpus: 0.5")), env={}, gpus=1).hosts["vault"].gpus == 0.5


# --------------------------------------------------------------------------------------------------- interpolation
@pytest.mark.parametrize(
    ("written", "env", "name"),
    [
        ("${N}", {"N": "a"}, "a"),
        ("${N:-b}", {}, "b"),
        ("${N:-b}", {"N": ""}, "b"),
        ("x-${N:-b}-${M:-c}", {"M": "m"}, "x-b-m"),
        ("${N:?give a name}", {"N": "a"}, "a"),
        ('"${N}"', {"N": "7"}, "7"),
    ],
)
def test_interpolation_in_values(written: str, env: dict[str, str], name: str):
    assert loads(replaced(("name: desk", f"name: {written}")), env=env).name == name


def test_an_interpolated_number_is_a_number_and_two_dollars_are_one():
    text = replaced(("max_visits: 4", 'max_visits: "${V:-6}"'), ("name: desk", "name: desk\ndescription: costs $$5"))
    desk = loads(text, env={})
    assert (desk.routing.max_visits, desk.description) == (6, "costs $5")


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("$N", "is no interpolation; write ${V}"),
        ("${N-b}", "is no interpolation"),
        ("${N?b}", "is no interpolation"),
        ("${N:+b}", "is no interpolation"),
        ("${1}", "is no interpolation"),
        ("a$", "is no interpolation"),
        ("${N}", "variable N is not set; set it, or write ${N:-default}"),
        ("${N:?give a name}", "variable N is not set: give a name"),
    ],
)
def test_other_forms_and_unset_variables_are_refused(written: str, what: str):
    found = faults(replaced(("name: desk", f"name: {written}")))
    assert [fault.line for fault in found] == [2]
    assert what in str(found[0])


def test_keys_are_not_interpolated():
    assert "interpolation works in values only" in str(faults(replaced(("  writer:", "  ${W}:")))[0])


def test_an_error_never_prints_what_a_variable_held():
    found = faults(replaced(("max_visits: 4", 'max_visits: "${SECRET}"')), env={"SECRET": "hunter2"})
    assert "${SECRET} (interpolated)" in str(found[0])
    assert "hunter2" not in str(found)


# -------------------------------------------------------------------------------------------------- hostile files
def test_aliases_are_bounded():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for at in range(1, 9):
        bomb += f"a{at}: &a{at} [{', '.join([f'*a{at - 1}' if at > 1 else '*a'] * 9)}]\n"
    assert "more than 64 aliases" in str(faults(bomb)[0])
    few = "a: &a [" + "x," * 30 + "]\n"
    for at in range(1, 6):
        few += f"a{at}: &a{at} [{', '.join([f'*a{at - 1}' if at > 1 else '*a'] * 12)}]\n"
    assert "aliases expand to more than" in " ".join(map(str, faults(few)))


def test_an_alias_may_repeat_a_part_but_not_contain_itself():
    text = replaced(
        ("recall: {k1: 1.2, b: 0.75, previous: [0.5]}", "recall: &words {k1: 1.2}"),
        ("bits: 8, rank", "recall: *words, rank"),
    )
    assert loads(text, env={}).nodes["tickets"].recall.k1 == 1.2
    assert any("must not contain itself" in str(fault) for fault in faults("version: &a [*a]\n"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the file is empty"),
        ("- a\n", "a topology must be a mapping, but is a list"),
        ("a: 1\n---\nb: 2\n", "a file must hold one YAML document"),
        ("a: " + "[" * 30 + "]" * 30, "nested deeper than 24 levels"),
        ("a: \x07\n", "not valid YAML"),
        ("x: " + "y" * (1024 * 1024), "the file must have at most 1048576 bytes"),
        ("a: {<<: {b: 1}}\n", "merge keys (`<<`) are not supported"),
        ("? [a, b]\n: 1\n", "a key must be a plain word"),
        ("nodes: 3\n", "`nodes` must be a mapping, but is 3"),
        ("nodes: {}\n", "`nodes` must have at least 1 entries"),
        ("nodes: {a: }\n", "`nodes.a` must be a mapping, but is nothing"),
        ("links: [1, {}]\n", "`links[0]` must be a mapping, but is 1"),
    ],
)
def test_odd_files_get_a_clear_fault(text: str, what: str):
    assert any(what in str(fault) for fault in faults(text)), list(map(str, faults(text)))


_LINES = st.sampled_from(
    [*GOOD.splitlines(), "nodes:", "  x: {}", "links: 3", "a: [", "ingress: [inbox]", "hosts: {a: 1}"]
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(_LINES, max_size=20), st.text(max_size=30))
def test_any_text_loads_or_is_refused_with_places_inside_it(lines: list[str], junk: str):
    text = "\n".join([*lines, junk])
    found: tuple[TopologyFault, ...] = ()
    try:
        topology = loads(text, env={}, gpus=0)
    except InvalidTopology as invalid:
        found, topology = invalid.faults, None
    last = len(text.splitlines()) + 2
    assert (topology is None) == bool(found)
    assert all(1 <= fault.line <= last and fault.column >= 1 for fault in found)


def test_a_file_that_cannot_be_read_is_a_fault_too(tmp_path: Path):
    with pytest.raises(InvalidTopology, match="cannot be read: No such file"):
        load(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\nname: caf\xe9\n")
    with pytest.raises(InvalidTopology, match=r"latin\.yaml:2:10: the file must be UTF-8"):
        load(tmp_path / "latin.yaml")


def test_a_node_may_bound_each_memory_and_use_few_bits():
    topology = loads(replaced(("bits: 8, rank: 16", "bits: 2, rank: 16, budget: 64KiB")), file="t.yaml", env={})
    assert (topology.nodes["tickets"].budget_bytes, topology.nodes["tickets"].bits) == (65_536, 2)
    assert topology.nodes["manuals"].budget_bytes is None
    [small] = faults(replaced(("capacity: 512MiB", "capacity: 512MiB, budget: 100")))
    assert (small.line, "4096" in small.what) == (8, True)
    [generator] = faults(replaced(("model: smollm2-135m", "model: smollm2-135m, budget: 1MiB")))
    assert "`budget` belongs to memory nodes" in generator.what


# --------------------------------------------------------------------------------------------- the files we ship
@pytest.mark.parametrize("file", sorted(TOPOLOGIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_topologies_have_no_fault_and_say_what_they_show(file: Path):
    topology = load(file, env={}, gpus=0)
    assert topology.session_nodes()
    assert topology.generators()
    assert len(topology.hosts) <= 2
    text = file.read_text()
    assert text.startswith("# yaml-language-server: $schema=./schema.json\n#\n# ")
    assert "Shows" in text.split("version:")[0]


def test_the_library_has_one_node_for_each_body_of_documentation():
    library = load(TOPOLOGIES / "library.yaml", env={})
    assert set(library.collections()) == {"stdlib", "networkx", "torch", "ray", "fastapi", "numpy"}
    for name in library.collections():
        assert library.holders(name) == (name,)
        assert (library.nodes[name].recall.k1, library.nodes[name].recall.b) == (1.2, 0.75)


def test_the_schema_file_is_the_one_that_the_models_give():
    assert json.loads((TOPOLOGIES / "schema.json").read_text()) == schema(), (
        "run: qraf topology schema --out topologies/schema.json"
    )


def test_the_schema_knows_every_key_and_lets_references_stand_for_numbers():
    made = schema()
    assert {"version", "name", "nodes", "ingress"} <= set(made["required"])
    recall = made["$defs"]["Recall"]["properties"]
    assert set(recall) == set(RecallSettings.__dataclass_fields__)
    assert {"type": "string", "pattern": r"^\$\{.+\}$"} in recall["k1"]["anyOf"]
    assert made["$defs"]["Node"]["additionalProperties"] is False


def test_services_are_read_with_the_bounds_of_their_replicas():
    text = replaced(
        ("ingress: inbox", "services: {optimization: {scaling: {min: 1, max: 5}}, correction: {}}\ningress: inbox")
    )
    assert loads(text, env={}).services == (ServiceSpec("optimization", 1, 5), ServiceSpec("correction", 1, 1))
    assert loads(GOOD, env={}).services == ()
