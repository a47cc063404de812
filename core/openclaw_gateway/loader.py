"""From a configuration to built plugins: entry points, classes, typed configs, references, instances in order.

Nothing is skipped: whatever is wrong, in any file, is collected and refused together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

import msgspec

from openclaw_gateway.config.document import DeclaredSkill, Document, Model, PluginConfig
from openclaw_gateway.config.layers import FromEnvironment, Layers
from openclaw_gateway.config.problems import Problem
from openclaw_gateway.config.settle import settled
from openclaw_gateway.config.units import Secret, decoder
from openclaw_gateway.exchange import Fact
from openclaw_gateway.facts import PRINCIPAL, TIER
from openclaw_gateway.hooks import PROJECT
from openclaw_gateway.pipeline import EXCHANGE, misordered
from openclaw_gateway.references import capabilities_of, lacking, located
from openclaw_gateway.structs import Finding, bare, collect, nearest
from openclaw_gateway.tiers import Tier, TierFiles

GROUP = "openclaw.plugins"


class Definition(msgspec.Struct, frozen=True):
    """One plugin instance before it is built: its id, class, typed config and the ids it names."""

    id: str
    use: str
    cls: Any
    config: Any
    references: tuple[str, ...]


class Loaded(msgspec.Struct, frozen=True):
    """A configuration that holds: the typed document, definitions in order of construction, typed tiers."""

    document: Document
    definitions: tuple[Definition, ...]
    tiers: Mapping[str, Tier]
    tier_files: TierFiles


@cache
def installed() -> dict[str, list[EntryPoint]]:
    """All plugins that installed distributions offer, by name; more than one of a name is a conflict."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def load(layers: Layers) -> tuple[Loaded | None, list[Problem]]:
    """Type and resolve everything; return what was loaded, or every problem."""
    return _Load(layers).run()


class _Load:
    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.directory = layers.file.path.parent
        self.dec_hook = decoder(self.directory)
        self.problems: list[Problem] = list(layers.problems)
        #: ids of the plugins that [models] and [skills] name
        self.providers: list[str] = []

    def run(self) -> tuple[Loaded | None, list[Problem]]:
        if self.layers.file.problems:
            return None, self.problems
        tree = settled(self.layers.tree, Document)
        self.report(collect(tree, Document, dec_hook=self.dec_hook))
        plugins = tree.get("plugins") if isinstance(tree.get("plugins"), dict) else {}
        gateway = tree.get("gateway") if isinstance(tree.get("gateway"), dict) else {}
        pipeline = gateway.get("pipeline")
        order = [p for p in pipeline if isinstance(p, str)] if isinstance(pipeline, list) else []
        definitions = self.define({k: v for k, v in plugins.items() if isinstance(v, dict)}, order)
        self.check_order(order, definitions, bool(gateway.get("insecure_dev", False)))
        self.check_references(tree, definitions)
        steps = tree.get("steps") if isinstance(tree.get("steps"), dict) else {}
        for id in steps:
            if id not in order:
                self.report([Finding(("steps", id), "no such step in gateway.pipeline", nearest=nearest(id, order))])
        folder, models = gateway.get("tiers", "tiers"), tree.get("models", {})
        if isinstance(folder, str):  # another value is told above
            files = TierFiles(self.directory / folder, folder)
            owners = {d.id: d.cls.Limits for d in definitions.values() if hasattr(d.cls, "Limits")}
            tiers, problems = files.build(owners, models if isinstance(models, dict) else None)
            self.problems += problems
        ordered = self.in_order(definitions)
        if self.problems:
            return None, self.problems
        document = msgspec.convert(tree, Document, dec_hook=self.dec_hook)
        return Loaded(document, ordered, tiers, files), []

    def report(self, findings: Iterable[Finding]) -> None:
        for f in findings:
            problem = Problem.of(f, self.layers.origin)
            if problem not in self.problems:
                self.problems.append(problem)

    def define(self, tables: Mapping[str, dict[str, Any]], order: Iterable[str]) -> dict[str, Definition]:
        definitions: dict[str, Definition] = {}
        places = {id: ("gateway", "pipeline", i) for i, id in reversed(list(enumerate(order)))}
        for id in dict.fromkeys([*tables, *order]):
            table = dict(tables.get(id, {}))
            use: Any = table.pop("use", id)
            where = ("plugins", id, "use") if "use" in tables.get(id, {}) else ("plugins", id)
            if isinstance(use, FromEnvironment):
                use = use.raw
            keys = where if id in tables else places[id]
            cls = self.find(use, keys, tables)
            if cls is None:
                continue
            config_type = getattr(cls, "Config", None)
            config = None
            if config_type is not None:
                table = settled(table, config_type)
                try:
                    findings = collect(table, config_type, path=("plugins", id), dec_hook=self.dec_hook)
                except Exception as error:  # noqa: BLE001 - odd types of fields, or what its __post_init__ raises
                    self.report([Finding(("plugins", id), f"the plugin's Config is not usable: {_said(error)}")])
                    continue
                secret = {f.name for f in msgspec.structs.fields(config_type) if _mentions(f.type, Secret)}
                self.report(
                    msgspec.structs.replace(f, found=None) if set(map(str, f.keys)) & secret else f for f in findings
                )
                if not findings:
                    config = msgspec.convert(table, config_type, dec_hook=self.dec_hook)
            elif table:
                self.report(
                    [Finding(("plugins", id, key), "unknown key: this plugin has no settings") for key in table]
                )
            references = tuple(name for (name, _), _ in located(config, ())) if config is not None else ()
            definitions[id] = Definition(id, str(use), cls, config, references)
        return definitions

    def find(self, use: Any, keys: tuple[str | int, ...], tables: Mapping[str, Any]) -> Any:
        offered = installed().get(use, []) if isinstance(use, str) else []
        if not offered:
            words = [*installed(), *(tables if "use" not in keys else ())]
            finding = Finding(
                keys,
                "no installed plugin has this name",
                found=f'"{use}"',
                expected=f"an entry point of the group {GROUP}",
                nearest=nearest(str(use), words),
            )
            self.report([finding])
            return None
        sources = {point.dist.name if point.dist is not None else "?" for point in offered}
        if len(sources) > 1:
            message = f'"{use}" is offered by more than one distribution: {", ".join(sorted(sources))}'
            self.report([Finding(keys, message, expected="one of them installed")])
            return None
        try:
            found = offered[0].load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a foreign module raises is the operator's to see
            message = f'"{use}" cannot be imported from {offered[0].value}: {type(error).__name__}: {error}'
            self.report([Finding(keys, message)])
            return None
        for name in ("requires", "provides"):
            facts = getattr(found, name, ())
            if not isinstance(facts, (tuple, list, set, frozenset)):
                message = f'the {name} of "{use}" is no tuple: {facts!r}'
                self.report([Finding(keys, message, expected="a tuple of Facts, (PRINCIPAL,) say")])
                return None
            if odd := [fact for fact in facts if type(fact) is not Fact]:
                message = f'"{use}" requires or provides what is no fact: {odd[0]!r}'
                self.report([Finding(keys, message, expected="a Fact, PRINCIPAL say")])
                return None
        usable = [self.usable(name, getattr(found, name, PluginConfig), use, keys) for name in ("Config", "Limits")]
        return found if all(usable) else None

    def usable(self, name: str, table: Any, use: str, keys: tuple[str | int, ...]) -> bool:
        """Whether settings can be read into a plugin's `Config` or `Limits`; what is wrong with it is reported."""
        if not (isinstance(table, type) and issubclass(table, PluginConfig)):
            message = f'the {name} of "{use}" is no PluginConfig: what is misspelt in it would be passed over'
            self.report([Finding(keys, message, expected="a subclass of openclaw_gateway.api.PluginConfig")])
        try:
            msgspec.convert({}, table, dec_hook=self.dec_hook)
        except msgspec.ValidationError:
            return issubclass(table, msgspec.Struct)
        except Exception as error:  # noqa: BLE001 - a name that is not there, types that msgspec does not read
            self.report([Finding(keys, f'the {name} of "{use}" is not usable: {_said(error)}')])
            return False
        return issubclass(table, msgspec.Struct)

    def check_order(self, order: list[str], definitions: Mapping[str, Definition], insecure_dev: bool) -> None:
        for i, id in enumerate(order):
            if id in order[:i]:
                self.report([Finding(("gateway", "pipeline", i), f"step {id!r} is listed twice")])
        acting = [d.id for d in definitions.values() if _acts(d.cls)]
        for i, id in enumerate(order):
            if id in definitions and id not in acting:
                message = f"plugin {id!r} is no step: it takes part in no exchange and charges for none"
                expected = "one of: " + ", ".join(acting)
                self.report([Finding(("gateway", "pipeline", i), message, None, expected, nearest(id, acting))])
        steps = [(id, definitions[id].cls) for id in order if id in definitions]
        authenticated = any(PRINCIPAL in getattr(cls, "provides", ()) for _, cls in steps)
        given = (PRINCIPAL, TIER) if insecure_dev and not authenticated else ()
        if len(steps) == len(order):
            self.report(misordered(steps, given=given))

    def check_references(self, tree: Mapping[str, Any], definitions: Mapping[str, Definition]) -> None:
        for definition in definitions.values():
            if definition.config is not None:
                for (name, capability), keys in located(definition.config, ("plugins", definition.id)):
                    self.check_reference(keys, name, capability, definitions)
        for section, struct in (("models", Model), ("skills", DeclaredSkill)):
            self.check_providers(section, struct, tree, definitions)

    def check_providers(
        self,
        section: str,
        struct: type[msgspec.Struct],
        tree: Mapping[str, Any],
        definitions: Mapping[str, Definition],
    ) -> None:
        tables = tree.get(section)
        for name, table in (tables if isinstance(tables, dict) else {}).items():
            for field in msgspec.structs.fields(struct):
                for capability in capabilities_of(field.type):
                    provider = table.get(field.encode_name) if isinstance(table, dict) else None
                    if isinstance(provider, str):
                        self.providers.append(provider)
                        self.check_reference((section, name, field.encode_name), provider, capability, definitions)

    def check_reference(
        self, keys: tuple[str | int, ...], name: str, capability: type, definitions: Mapping[str, Definition]
    ) -> None:
        definition = definitions.get(name)
        if definition is None:
            fitting = [d.id for d in definitions.values() if not lacking(d.cls, capability)]
            self.report(
                [
                    Finding(
                        keys,
                        "no plugin has this id",
                        found=f'"{name}"',
                        expected=f"a {capability.__name__}: " + (", ".join(sorted(fitting)) or "none is configured"),
                        nearest=nearest(name, definitions),
                    )
                ]
            )
        elif missing := lacking(definition.cls, capability):
            message = f'plugin "{name}" ({definition.use}) is no {capability.__name__}: it lacks {", ".join(missing)}'
            self.report([Finding(keys, message)])

    def in_order(self, definitions: Mapping[str, Definition]) -> tuple[Definition, ...]:
        """Order by references: a plugin is built after those that it names."""
        ordered: dict[str, Definition] = {}
        path: list[str] = []

        def visit(id: str) -> None:
            if id in ordered or id not in definitions:
                return
            if id in path:
                cycle = " -> ".join([*path[path.index(id) :], id])
                self.report([Finding(("plugins", id), f"plugins name one another in a circle: {cycle}")])
                return
            path.append(id)
            for reference in definitions[id].references:
                visit(reference)
            path.pop()
            ordered[id] = definitions[id]

        # Providers first: whoever runs models or skills is built after them, and closed before them.
        for id in (*self.providers, *definitions):
            visit(id)
        return tuple(ordered.values())


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, (TypeError, NotImplementedError)) else f"{type(error).__name__}: {error}"


def _acts(cls: Any) -> bool:
    """Whether plugins of this class can be steps: they have a hook of exchanges, or say what is charged."""
    return any(hasattr(getattr(cls, name, None), f"{PROJECT}_impl") for name in (*EXCHANGE, "charges"))


def _mentions(type: Any, wanted: Any) -> bool:
    base = bare(type)
    return base is wanted or any(_mentions(a, wanted) for a in get_args(base))
