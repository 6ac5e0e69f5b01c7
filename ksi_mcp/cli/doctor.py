"""`ksi-mcp doctor`: what is there, what answers, what is missing and how to get it."""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from ksi_mcp import __version__
from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.doctor_models import lines_of_models, look_at_models, missing_models
from ksi_mcp.cli.twin.options import HomeOption, JsonOption, ProjectOption
from ksi_mcp.config import Config, Home, find_home, load_config
from ksi_mcp.db import Tx
from ksi_mcp.db.migrate import migrations
from ksi_mcp.db.sizes import measure
from ksi_mcp.db.sqlite import SQLITE_VERSION
from ksi_mcp.errors import KsiError
from ksi_mcp.events.retention import Retention
from ksi_mcp.launching import last_error
from ksi_mcp.routing import safe_mode

MEASURE_S = 4.0
"""What takes long on a large store is given up after so long."""
PACKAGES = (
    *("mcp", "anthropic", "pydantic", "aiosqlite", "genai-prices", "starlette", "uvicorn", "typer", "rich"),
    *("keyring", "cryptography"),
)


def command(
    home: HomeOption = None,
    project: ProjectOption = None,
    settings: Annotated[bool, typer.Option("--settings", help="List every setting of config.yaml instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, what the data folder holds and how large it is, which providers answer, what is missing.

    Exits with 1 if something essential is missing. Nothing leaves this machine.
    """
    if settings:
        listed = list_settings(Config)
        _print({"settings": listed}, as_json=as_json, lines=[_setting_line(each) for each in listed])
        return
    logging.getLogger("ksi_mcp").addHandler(logging.NullHandler())  # the report says what a log would
    place = find_home(home)
    config, broken = _configured(place)

    facts: dict[str, Any] = {
        "ksi_mcp": __version__,
        "python": platform.python_version(),
        "sqlite": SQLITE_VERSION,
        "packages": {name: _version(name) for name in PACKAGES},
        **asyncio.run(_look(place, config, project)),
    }
    missing = _missing(facts)
    if broken is not None:
        facts["config"] = "config.yaml is broken: these are the defaults"
        missing.insert(0, {"what": "config.yaml cannot be used", "essential": True, "get": broken})
    facts["missing"] = missing
    _print(facts, as_json=as_json, lines=_lines(facts))
    if any(each["essential"] for each in missing):
        raise typer.Exit(1)


def _configured(place: Home) -> tuple[Config, str | None]:
    """The configuration, or the defaults and why it cannot be used."""
    try:
        return load_config(place), None
    except KsiError as wrong:
        return Config(), wrong.message


async def _look(place: Home, config: Config, project: Path | None) -> dict[str, Any]:
    async with App(place, AppOptions(worker="none", project=project), config=config) as app:
        services = app.services
        report = await services.library.refresh()
        counts = await services.journal.read(_counts)
        sizes = await asyncio.to_thread(measure, place.database, limit_s=MEASURE_S)
        would = await Retention(services.journal, config.retention).preview(limit_s=MEASURE_S)
        models = await look_at_models(services.registry, config, place)
        return {
            "data_folder": str(place.root),
            "config": "config.yaml" if place.config.is_file() else "no config.yaml: the defaults",
            "schema": migrations()[-1][0],
            "database_bytes": place.database.stat().st_size,
            **counts,
            "store": {
                "log_bytes": sizes.log,
                "free_bytes": sizes.free,
                "tables": sizes.tables,
                "tables_exact": sizes.exact,
                "largest_orchestrations": None if sizes.runs is None else [asdict(run) for run in sizes.runs],
            },
            "retention_would_free": {
                "events": would.events, "turns": would.turns, "bytes": would.bytes, "complete": would.complete,
            },
            "worker": "alive" if app.worker_lives() else "none (it is started when there is something to do)",
            "worker_sign": await services.journal.read(_sign),
            "worker_error": last_error(place),
            "routing": await services.journal.read(lambda tx: _routing(tx, config)),
            **models,
            "compositions": report.total,
            "composition_problems": [f"{bad.layer}/{bad.path}: {bad.message}" for bad in report.problems],
        }  # fmt: skip


def _sign(tx: Tx) -> dict[str, Any] | None:
    """The last sign of life of the worker, of this one or of one that is gone."""
    row = tx.one("completions.worker_sign")
    if row is None:
        return None
    return {
        "pid": row["pid"],
        "up_s": max(0, row["beat_ms"] - row["started_at_ms"]) / 1000,
        "silent_s": max(0, tx.now_ms - row["beat_ms"]) / 1000,
    }


def _routing(tx: Tx, config: Config) -> dict[str, Any]:
    """Whether events are delivered, how many wait, and what could not be delivered."""
    letters = tx.one("routing.open_count")
    count, oldest_ms = (0, None) if letters is None else (int(letters["letters"]), letters["oldest_ms"])
    return {
        "paused": safe_mode.is_paused(tx),
        "safe_mode_in_config": bool(config.routing.safe_mode),
        "waiting": safe_mode.waiting(tx),
        "dead_letters": count,
        "oldest_dead_letter_s": None if oldest_ms is None else max(0, tx.now_ms - oldest_ms) / 1000,
    }


def list_settings(model: type[BaseModel], prefix: str = "") -> list[dict[str, Any]]:
    """Every key of `config.yaml` with its meaning and default."""
    found: list[dict[str, Any]] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += list_settings(inner, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        found.append({"key": prefix + name, "default": default, "means": field.description or ""})
    return found


def _setting_line(setting: dict[str, Any]) -> str:
    default = json.dumps(setting["default"], default=list)
    return f"{setting['key']:<28} {default:<24} {setting['means']}".rstrip()


def _counts(tx: Tx) -> dict[str, int]:
    row = tx.one("tools.counts")
    return {} if row is None else {name: int(row[name]) for name in row.keys()}  # noqa: SIM118  a row is no dict


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _missing(facts: dict[str, Any]) -> list[dict[str, Any]]:
    missing = [
        {"what": f"the package {name!r}", "essential": True, "get": f"{sys.executable} -m pip install {name}"}
        for name, version in facts["packages"].items()
        if version is None
    ]
    missing += missing_models(facts)
    missing += [
        {"what": f"composition {problem}", "essential": False, "get": "correct the file"}
        for problem in facts["composition_problems"]
    ]
    return missing


def _lines(facts: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {version or 'MISSING'}" for name, version in facts["packages"].items())
    lines = [
        f"ksi_mcp {facts['ksi_mcp']} on Python {facts['python']}, SQLite {facts['sqlite']}",
        f"packages     {packages}",
        f"data folder  {facts['data_folder']} ({facts['config']})",
        (
            f"database     schema {facts['schema']}, {facts['database_bytes']:,} bytes; {facts['agents']} agents, "
            f"{facts['turns']} turns, {facts['events']} events, {facts['orchestrations']} runs"
        ),
        *_store_lines(facts),
        f"worker       {facts['worker']}{_sign_words(facts['worker'], facts['worker_sign'])}",
        f"library      {facts['compositions']} compositions",
        f"routing      {_routing_words(facts['routing'])}",
    ]
    if facts["worker_error"]:
        lines.append(f"worker's log {facts['worker_error']}")
    lines += lines_of_models(facts)
    lines += [
        f"{'MISSING' if each['essential'] else 'note':<12} {each['what']}: {each['get']}" for each in facts["missing"]
    ]
    if not facts["missing"]:
        lines.append("nothing is missing")
    return lines


def _store_lines(facts: dict[str, Any]) -> list[str]:
    store, would = facts["store"], facts["retention_would_free"]
    lines = [f"store        write-ahead log {_size(store['log_bytes'])}, {_size(store['free_bytes'])} of the file free"]
    if store["tables"] is None:
        lines.append(f"             what takes the room was not learned within {MEASURE_S:g} s")
    else:
        largest = [f"{name} {_size(size)}" for name, size in store["tables"].items()][:8]
        lines.append(f"             {', '.join(largest)}{'' if store['tables_exact'] else ' (without indexes)'}")
    runs = store["largest_orchestrations"]
    for i, run in enumerate(runs or []):
        name = "largest runs" if i == 0 else ""
        lines.append(f"{name:<12} {run['orchestration_id']} {run['pattern']}, {run['state']}: {_size(run['bytes'])}")
    if runs is None:
        lines.append(f"largest runs not learned within {MEASURE_S:g} s")
    least = "" if would["complete"] else "at least "
    lines.append(
        f"retention    would remove {least}{would['events']:,} events and {would['turns']:,} turns"
        f" ({_size(would['bytes'])}) now"
    )
    return lines


def _sign_words(worker: str, sign: dict[str, Any] | None) -> str:
    if sign is None:
        return ""
    if worker != "alive":
        return f"; the last one was there until {sign['silent_s']:,.0f} s ago"
    return f", process {sign['pid']}, last sign of life {sign['silent_s']:,.0f} s ago"


def _routing_words(routing: dict[str, Any]) -> str:
    words = f"{routing['waiting']:,} events wait"
    if routing["paused"]:
        until = (
            "config.yaml says otherwise" if routing["safe_mode_in_config"] else "a server or worker starts without it"
        )
        words = f"PAUSED (safe mode) until {until}; {words}"
    if not routing["dead_letters"]:
        return words
    oldest = f"the oldest for {routing['oldest_dead_letter_s']:,.0f} s"
    return f"{words}; {routing['dead_letters']:,} dead letters are open, {oldest}: see routing_dead_letters"


def _size(count: int) -> str:
    for unit, name in ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} B"


def _print(facts: dict[str, Any], *, as_json: bool, lines: list[str]) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False, default=list) if as_json else "\n".join(lines))
