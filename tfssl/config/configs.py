"""One value per run: all of its settings, read once of the command line, or of the record of a
run."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Optional, TypeVar, Union

from absl import flags

from tfssl.config import bounds, data_flags, generated, schema
from tfssl.config.generated import Generated

NOT_STORED = (
    "extend_schedule",
    "dry_run",
    "steal_lock",
    "accept_changed_data",
)  # asked of one start of a run alone

_Section = TypeVar("_Section")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of a pretraining.

    Attributes:
      task: a registered name, or the import path of a user's own class.
      task_settings: {argument of the task's constructor: value}.
      backbone_settings: {argument of the backbone's constructor: value}.
      optimizer_settings: {argument of the optimizer's constructor: value}.
      task_flags, backbone_flags, optimizer_flags: {argument: its flag}, of those whose flag has
        another name.
    """

    data: schema.Data = schema.Data()
    task: str = "rotation"
    task_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: schema.Network = schema.Network()
    optimization: schema.Optimization = schema.Optimization()
    accelerators: schema.NetworkAccelerators = schema.NetworkAccelerators()
    run: schema.Run = schema.Run()
    backbone_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task_flags: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    backbone_flags: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    optimizer_flags: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def define(
        cls,
        tasks: Generated,
        backbones: Generated,
        optimizers: Generated,
        values: flags.FlagValues = flags.FLAGS,
        section: Callable[[str], Any] = contextlib.nullcontext,
    ) -> None:
        """Define the flags, in the order of `--help`; `section(heading)` is entered around each
        section, `tasks`, `backbones` and `optimizers` are all that there are."""
        define(schema.Data, values, section)
        with section(schema.Network.heading):
            names = "|".join(tasks.settings)
            text = (
                f"<{names}>, or the import path of a class of your own, mypackage.mytask:MyTask: "
                "What the network learns to predict."
            )
            flags.DEFINE_string("task", cls.task, text, flag_values=values)
        define(schema.Network, values, section)
        with section("Settings of the backbone"):
            backbones.define(values=values)
        with section("Settings of the task"):
            tasks.define(values=values)
        _define_optimization(schema.Optimization, optimizers, values, section)
        for part in (schema.NetworkAccelerators, schema.Run):
            define(part, values, section)

    @classmethod
    def from_flags(
        cls, values: flags.FlagValues, tasks: Generated, backbones: Generated, optimizers: Generated
    ) -> "TrainConfig":
        """What the flags say.

        Raises:
          UserError: a flag is not a setting of the task, of the backbone, or of the optimizer.
        """
        return cls(
            task=_given(values, "task"),
            **_own("task", tasks, values),
            **_own("backbone", backbones, values),
            **_own("optimizer", optimizers, values),
            **_sections(cls, values),
        )

    @classmethod
    def from_record(
        cls,
        texts: Mapping[str, str],
        tasks: Generated,
        backbones: Generated,
        optimizers: Generated,
        overriding: Optional[flags.FlagValues] = None,
    ) -> "TrainConfig":
        """What a record says.

        Args:
          texts: {flag: text}, of flags.flags.
          tasks, backbones, optimizers: among which are the record's.
          overriding: parsed flags; those that are present take the place of the record's.

        Raises:
          absl.flags.Error: there is no such flag, or it does not take this value.
          UserError: a flag is not a setting of the task.
        """
        values = flags.FlagValues()
        cls.define(tasks, backbones, optimizers, values)
        bounds.apply(values)
        data_flags.expand_homes(values)
        for name, text in texts.items():
            if name not in values:
                raise flags.UnrecognizedFlagError(name, text)
            values[name].parse(text)
        if overriding is not None:
            for name in values:
                if name in overriding and overriding[name].present:
                    values[name].value = overriding[name].value
        return cls.from_flags(values, tasks, backbones, optimizers)

    def where(self) -> dict[str, Any]:
        """The keyword arguments of `open_source`."""
        channels = self.backbone_settings.get("input_channels", 3)
        return {**self.data.where(), "channels": channels}

    def flags(self) -> dict[str, Any]:
        """{flag: value} of all that is recorded."""
        parts = (self.network, self.optimization, self.accelerators, self.run)
        own = (_flags_of(self, kind) for kind in ("backbone", "optimizer", "task"))
        return _stored(vars(self.data), {"task": self.task}, *map(vars, parts), *own)

    def published(self) -> dict[str, Any]:
        """{flag: value} of what a module's tfssl.json says of its training: those that are set, and
        not where."""
        return _published(self.flags())

    def replace(self, **settings: Any) -> "TrainConfig":
        """The same with other settings, each by its name, of whichever section; those of the task
        stay."""
        return _replace(self, settings)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """All settings of a fine-tuning.

    Attributes:
      optimizer_settings: {argument of the optimizer's constructor: value}.
      optimizer_flags: {argument: its flag}, of those whose flag has another name.
    """

    classifier: schema.Classifier = schema.Classifier()
    data: schema.Data = schema.Data()
    labels: schema.Labels = schema.Labels()
    distillation: schema.Distillation = schema.Distillation()
    regularization: schema.Regularization = schema.Regularization()
    optimization: schema.FinetuneOptimization = schema.FinetuneOptimization()
    accelerators: schema.Accelerators = schema.Accelerators()
    run: schema.Run = schema.Run()
    optimizer_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer_flags: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def define(
        cls,
        optimizers: Generated,
        values: flags.FlagValues = flags.FLAGS,
        section: Callable[[str], Any] = contextlib.nullcontext,
    ) -> None:
        """Define the flags, in the order of `--help`; `section(heading)` is entered around each
        section."""
        for part in _parts(cls).values():
            if part is schema.FinetuneOptimization:
                _define_optimization(part, optimizers, values, section)
            else:
                define(part, values, section)

    @classmethod
    def from_flags(cls, values: flags.FlagValues, optimizers: Generated) -> "FinetuneConfig":
        """What the flags say.

        Raises:
          UserError: a flag is not a setting of the optimizer.
        """
        return cls(**_own("optimizer", optimizers, values), **_sections(cls, values))

    def flags(self) -> dict[str, Any]:
        """{flag: value} of all that is recorded."""
        return _stored(
            *(vars(getattr(self, name)) for name in _parts(type(self))),
            _flags_of(self, "optimizer"),
        )

    def published(self) -> dict[str, Any]:
        """{flag: value} of what a module's tfssl.json says of its training: those that are set, and
        not where."""
        return _published(self.flags())

    def replace(self, **settings: Any) -> "FinetuneConfig":
        """The same with other settings, each by its name, of whichever section."""
        return _replace(self, settings)


Config = Union[TrainConfig, FinetuneConfig]
_Config = TypeVar("_Config", TrainConfig, FinetuneConfig)


def define(
    section_class: type[Any],
    values: flags.FlagValues = flags.FLAGS,
    section: Callable[[str], Any] = contextlib.nullcontext,
) -> None:
    """Define the flags of one section; `section(heading)` is entered meanwhile."""
    with section(section_class.heading):
        generated.of(section_class).define(values=values)


def read(section_class: type[_Section], values: flags.FlagValues) -> _Section:
    """One section, as the flags say."""
    settings = generated.of(section_class)
    return section_class(
        **settings.arguments(
            section_class.__name__, {name: values[name].value for name in settings.flags}
        )
    )


def _define_optimization(
    part: type[schema.Optimization],
    optimizers: Generated,
    values: flags.FlagValues,
    section: Callable[[str], Any],
) -> None:
    define(part, values, section)
    with section(part.heading):
        optimizers.define(values=values)


def _parts(cls: type) -> dict[str, type]:
    """{field: its class} of a config's sections."""
    parts = {field.name: type(field.default) for field in dataclasses.fields(cls)}
    return {name: part for name, part in parts.items() if dataclasses.is_dataclass(part)}


def _given(values: flags.FlagValues, name: str) -> Any:
    return values[name].value


def _sections(cls: type, values: flags.FlagValues) -> dict[str, Any]:
    return {name: read(part, values) for name, part in _parts(cls).items()}


def _own(kind: str, generated_flags: Generated, values: flags.FlagValues) -> dict[str, Any]:
    """The fields of a config that hold the settings of what the flag `kind` names."""
    name, given = _given(values, kind), {flag: values[flag].value for flag in generated_flags.flags}
    generated_flags.check(name, given)
    names = {argument: setting.flag for argument, setting in generated_flags.settings[name].items()}
    return {
        f"{kind}_settings": generated_flags.arguments(name, given),
        f"{kind}_flags": {argument: flag for argument, flag in names.items() if flag != argument},
    }


def _flags_of(config: Config, kind: str) -> dict[str, Any]:
    names = getattr(config, f"{kind}_flags")
    return {
        names.get(argument, argument): value
        for argument, value in getattr(config, f"{kind}_settings").items()
    }


def _stored(*parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items() if name not in NOT_STORED}


def _published(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and name != "workdir"}


def _replace(config: _Config, settings: Mapping[str, Any]) -> _Config:
    """`dataclasses.replace` within the sections."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            own = {f.name: settings[f.name] for f in dataclasses.fields(part) if f.name in settings}
            changed[field.name] = dataclasses.replace(part, **own)
            settings = {name: value for name, value in settings.items() if name not in own}
    if settings:
        raise TypeError(f"no such settings: {', '.join(settings)}")
    return dataclasses.replace(config, **changed)
