"""The commands: each parses, calls one function, prints, and sets the exit code. Heavy imports are in the commands."""

from __future__ import annotations

import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from search.console import remark, tell, tell_aside
from search.errors import ReplayFailed
from search.housekeeping import delete, studies
from search.options import (
    AcceptChangesOption,
    AllowEditsOption,
    AllowHostOption,
    ColumnsOption,
    Commands,
    DataOption,
    DuplicatesOption,
    EndJsonOption,
    ExportedArgument,
    ExportedTrialsOption,
    ExportOption,
    FigureOption,
    GpusOption,
    HostOption,
    HoursOption,
    JsonOption,
    LabelsOption,
    LikeOption,
    LoudnessOption,
    PicturesArgument,
    PortOption,
    ProxyOption,
    RunsOption,
    SetOption,
    SpecArgument,
    StorageOption,
    StudyArgument,
    TokenFileOption,
    TrainingsOption,
    TrialsOption,
    VersionOption,
    budget_of,
    load_study,
    overrides_of,
    study_name,
    trial_numbers,
)
from search.options import places as _places
from search.options import print_answer as _print
from search.paths import DEFAULT_RUNS, Runs
from search.process import check_current_folder, leave_after, run_command
from search.steering import gpus, stop

if TYPE_CHECKING:
    from search.watch.observers import Observer

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the best image classifier that fits a size limit. Start with: search launch",
    epilog="Exit codes: 0 done, 2 usage, 3 storage, 4 data, 5 nothing fits the limit, 6 nothing to export, "
    "7 in use by another process, 8 study changed, 9 proof or replay failed, 10 training failed, 11 disk full, "
    "75 interrupted (run it again to go on), 130 second signal, 70 internal.",
)


@app.callback()
def options(version: VersionOption = False, verbose: LoudnessOption = None) -> None:
    """Options that every command takes."""
    check_current_folder()


@app.command()
def launch(
    context: typer.Context,
    study: SpecArgument = "digits",
    gpus: GpusOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the pictures; the study's later launches remember it.")
    ] = None,
    labels: LabelsOption = None,
    trainings: TrainingsOption = None,
    trials: TrialsOption = None,
    hours: HoursOption = None,
    export: ExportOption = False,
    assignments: SetOption = None,
    accept_changes: AcceptChangesOption = False,
    with_dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve the dashboard during the search, read-only, on 127.0.0.1.")
    ] = False,
    as_json: EndJsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Search a study, or go on with it; with --export, export its best model too."""
    import studies as shipped
    from search.workers.places import parse_places

    overrides = overrides_of(assignments, data, labels)
    overrides += budget_of(trainings=trainings, trials=trials, hours=hours)
    spec, is_shipped = shipped.load(study, overrides), study in shipped.names()
    devices = parse_places(gpus, spec.cluster, spec.search.workers_per_gpu)
    folder, url = _places(storage, runs)

    from search.pipeline import launch_study

    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if with_dashboard:
            from search.watch.dashboard import dashboard_beside

            beside = dashboard_beside(url.render_as_string(hide_password=False), folder)
            tell(f"dashboard: {stack.enter_context(beside)}")
        given, further = overrides if is_shipped else None, context.obj or ()
        launched = launch_study(
            spec, url, folder, devices, overrides=given, accept_changes=accept_changes, further=further, export=export
        )
    tell(json.dumps(launched.to_json(folder), indent=2) if as_json else launched.text(folder, gpus))


@app.command()
def check(
    study: SpecArgument,
    data: DataOption = None,
    labels: LabelsOption = None,
    gpus: GpusOption = None,
    trainings: TrainingsOption = None,
    trials: TrialsOption = None,
    figure: FigureOption = None,
    duplicates: DuplicatesOption = False,
    assignments: SetOption = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Print what a study means, and all of its problems."""
    from search.devices import parse_devices, share_gpus
    from search.plan.check import check_study
    from search.plan.meaning import text_of_check

    budget = budget_of(trainings=trainings, trials=trials)
    spec = load_study(study, [*(assignments or []), *budget], data, labels)
    workers = share_gpus(parse_devices(gpus), spec.search.workers_per_gpu)
    (folder, url), say = _places(storage, runs), partial(remark, to_stderr=as_json)
    pairs = Path(f"{spec.name}-duplicates.png") if duplicates else None
    meaning = check_study(spec, folder, workers, url=url, figure=figure, duplicates=pairs, say=say)
    _print(meaning, text_of_check, as_json=as_json)


@app.command("lr-range")
def lr_range(
    study: SpecArgument,
    data: DataOption = None,
    labels: LabelsOption = None,
    gpus: GpusOption = None,
    out: Annotated[Path | None, typer.Option(help="PNG of the curve. Default: STUDY-lr-range.png")] = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Find a range of learning rates to search, by training while the rate rises."""
    from search.devices import parse_devices
    from search.plan.lr_range import find_lr_range, text_of_lr_range

    spec = load_study(study, assignments or [], data, labels)
    figure = out or Path(f"{spec.name}-lr-range.png")
    _print(find_lr_range(spec, Runs(runs), parse_devices(gpus)[0], figure), text_of_lr_range, as_json=as_json)


@app.command()
def limit(
    model: Annotated[str, typer.Argument(help="A timm model, for example rexnet_100.")],
    classes: Annotated[int, typer.Option(min=1, help="Outputs of the classifier.")],
    max_params: Annotated[int | None, typer.Option(min=1, help="Largest number of parameters.")] = None,
    max_macs: Annotated[int | None, typer.Option(min=1, help="Largest number of multiply-adds.")] = None,
    image_size: Annotated[int, typer.Option(min=8, max=1024, help="Pixels; multiply-adds depend on it.")] = 224,
    width_mult: Annotated[float | None, typer.Option(help="Count this width instead of finding the widest.")] = None,
    as_json: JsonOption = False,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Find the widest model within a limit, exactly."""
    from search.plan.limit import answer_limit, text_of_limit
    from search.plan.width import Fitter
    from studies import Limit
    from trainer.config import Shape

    fitter = Fitter(Shape(classes, image_size), Limit(params=max_params, macs=max_macs), Runs(runs).widths)
    _print(answer_limit(model, fitter, width_mult), text_of_limit, as_json=as_json)


@app.command()
def status(
    study: StudyArgument = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow a running search until it ends.")] = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Show a study, running or not."""
    folder, url = _places(storage, runs)

    from search.watch.shown import show_status

    show_status(study_name(study, folder), url, folder, watch=watch, as_json=as_json)


@app.command()
def replay(
    study: StudyArgument = None,
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="pruner=NAME", help="Show the decisions of another pruner instead."),
    ] = None,
    as_json: JsonOption = False,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Repeat every decision of a search with a fresh sampler and pruner, and check that all are the same."""
    from search.study.replay import Replay, replay_study, text_of_replay

    folder = Runs(runs)
    answer = replay_study(study_name(study, folder), folder, other)
    _print(answer, text_of_replay, as_json=as_json)
    if isinstance(answer, Replay) and not (answer.identical or answer.versions):
        raise ReplayFailed(
            f"study {answer.study!r} does not repeat itself under the versions it was made with: its journal was "
            "changed, or this is a bug to report"
        )


@app.command()
def dashboard(
    host: HostOption = "127.0.0.1",
    port: PortOption = 8080,
    token_file: TokenFileOption = None,
    allow_hosts: AllowHostOption = None,
    proxy: ProxyOption = None,
    allow_edits: AllowEditsOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Serve optuna-dashboard on 127.0.0.1, read-only."""
    folder, url = _places(storage, runs)

    from search.watch.dashboard import serve_dashboard

    serve_dashboard(
        url.render_as_string(hide_password=False),
        host=host,
        port=port,
        allow_hosts=allow_hosts or [],
        url=proxy,
        token_file=token_file,
        edits=allow_edits,
        runs=folder,
        announce=tell,
    )


@app.command()
def report(
    study: StudyArgument = None,
    out: Annotated[Path | None, typer.Option(help="The page to write. Default: STUDY-report.html")] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Write a report about a study: one HTML page, which needs no network."""
    folder, url = _places(storage, runs)

    from search.watch.report import text_of_report, write_report

    _print(write_report(study_name(study, folder), url, folder, out), text_of_report, as_json=as_json)


@app.command("export-best")
def export_best(
    study: ExportedArgument = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the export. Default: RUNS/exports/STUDY-TRIAL")] = None,
    gpus: GpusOption = None,
    trial: ExportedTrialsOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the pictures, if it is another one than at the launch.")
    ] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Confirm the best trials, retrain the one that wins, export it, and prove the export."""
    folder, url = _places(storage, runs)

    from search.export.export import export_best as run
    from search.export.metrics import text_of_export

    asked = load_study(study, [], None) if study is not None and study.endswith(".toml") else None
    name = asked.name if asked is not None else study_name(study, folder)
    numbers = trial_numbers(trial)
    export = run(name, url, folder, gpus, asked=asked, moved=data, out=out, numbers=numbers, to_stderr=as_json)
    _print(export, text_of_export, as_json=as_json)


@app.command()
def predict(
    export: Annotated[Path, typer.Argument(help="Folder that export-best wrote.")],
    pictures: PicturesArgument,
    top: Annotated[
        int | None, typer.Option(min=1, help="Classes per picture, printed or in a .json; 5 unless given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the answers into this .csv or .json.")] = None,
    columns: ColumnsOption = None,
    like: LikeOption = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the probability of every class.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with an error if a picture cannot be read, and write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the most likely classes of pictures."""
    from search.export import predict as of

    request = of.Request(
        export=export,
        given=tuple(pictures),
        top=top,
        columns=columns,
        like=like,
        probabilities=probabilities,
        strict=strict,
    )
    answer = of.predict(request) if out is None else of.predict_into(out, request)
    if answer.bad:
        tell_aside(of.warning_of(answer.bad, like))
    _print(answer, of.text_of_answer, as_json=as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder that export-best wrote.")],
    second: Annotated[Path, typer.Argument(help="Another export, with the same classes.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of pictures to compare on: test/CLASS/* or CLASS/*.")
    ] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    runs: RunsOption = DEFAULT_RUNS.root,
) -> None:
    """Compare two exports on the same pictures."""
    from search.export.compare import compare as run
    from search.export.comparison import text_of_comparison

    folder, url = _places(storage, runs)
    _print(run(first, second, data=data, runs=folder, url=url), text_of_comparison, as_json=as_json)


app.command()(stop)
app.command()(gpus)
app.command()(studies)
app.command()(delete)


def main(*observers: Observer) -> NoReturn:
    """Entry point of ``search``. A user's script may call it with its own observers of a launch."""
    leave_after(lambda: run_command(partial(app, obj=observers)))
