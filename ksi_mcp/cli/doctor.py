"""`ksi-mcp doctor`: what is there, what answers, what is missing and how to get it."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from ksi_mcp import __version__
from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.options import HomeOption, JsonOption, ProjectOption
from ksi_mcp.config import Config, find_home
from ksi_mcp.db import Tx
from ksi_mcp.db.migrate import migrations
from ksi_mcp.db.sqlite import SQLITE_VERSION

PACKAGES = ("mcp", "anthropic", "pydantic", "aiosqlite", "genai-prices", "starlette", "uvicorn", "typer", "rich")


def command(
    home: HomeOption = None,
    project: ProjectOption = None,
    settings: Annotated[bool, typer.Option("--settings", help="List every setting of config.yaml instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, what the data folder holds, which providers answer, and what is missing.

    Exits with 1 if something essential is missing. Nothing goes over the network.
    """
    if settings:
        listed = list_settings(Config)
        _print({"settings": listed}, as_json=as_json, lines=[_setting_line(each) for each in listed])
        return
    place = find_home(home)

    async def look() -> dict[str, Any]:
        async with App(place, AppOptions(worker="none", project=project)) as app:
            report = await app.services.library.refresh()
            counts = await app.services.journal.read(_counts)
            default = app.services.registry.settings.default_provider
            providers = {
                name: {"answers": answers, "why": why, "default": name == default}
                for name, (answers, why) in app.services.registry.available().items()
            }
            return {
                "data_folder": str(place.root),
                "config": "config.yaml" if place.config.is_file() else "none (defaults)",
                "schema": migrations()[-1][0],
                "database_bytes": place.database.stat().st_size,
                "worker": "alive" if app.worker_lives() else "none (it is started when there is something to do)",
                **counts,
                "providers": providers,
                "compositions": report.total,
                "composition_problems": [f"{bad.layer}/{bad.path}: {bad.message}" for bad in report.problems],
            }

    facts: dict[str, Any] = {
        "ksi_mcp": __version__,
        "python": platform.python_version(),
        "sqlite": SQLITE_VERSION,
        "packages": {name: _version(name) for name in PACKAGES},
        **asyncio.run(look()),
    }
    missing = _missing(facts)
    facts["missing"] = missing
    _print(facts, as_json=as_json, lines=_lines(facts))
    if any(each["essential"] for each in missing):
        raise typer.Exit(1)


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
    for name, state in facts["providers"].items():
        if state["default"] and not state["answers"]:
            get = f"{state['why']}; or set `provider: scripted` in config.yaml"
            missing.append({"what": f"the default provider {name!r} does not answer", "essential": False, "get": get})
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
        f"worker       {facts['worker']}",
        f"library      {facts['compositions']} compositions",
    ]
    for name, state in facts["providers"].items():
        default = " (default)" if state["default"] else ""
        lines.append(f"provider     {name}{default}: {'ok' if state['answers'] else 'no'}, {state['why']}")
    lines += [
        f"{'MISSING' if each['essential'] else 'note':<12} {each['what']}: {each['get']}" for each in facts["missing"]
    ]
    if not facts["missing"]:
        lines.append("nothing is missing")
    return lines


def _print(facts: dict[str, Any], *, as_json: bool, lines: list[str]) -> None:
    typer.echo(json.dumps(facts, ensure_ascii=False, default=list) if as_json else "\n".join(lines))
