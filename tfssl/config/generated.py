"""Flags made from the settings of classes: one place for a setting's name, default and help, its
constructor."""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from tfssl.config import bounds
from tfssl.config.signatures import Setting, read
from tfssl.errors import UserError
from tfssl.registry import Registry


class Generated:
    """The flags of the classes of one kind, such as all tasks. A flag that several have is one
    flag.

    Args:
      kind: what they are, for messages: "task".
      sources: {name: (module, class)}.
      unset: where there are several classes, leave all flags unset, so that `check` can refuse a
        given one that the chosen class has not. False: a flag whose classes agree on its default
        has this default.

    Attributes:
      settings: {name: {argument: `Setting`}}.
      flags: names of all flags, in the order of the classes.
    """

    def __init__(
        self, kind: str, sources: Mapping[str, tuple[str, str]], unset: bool = True
    ) -> None:
        self.kind, self.unset = kind, unset
        self.settings = {name: read(*source) for name, source in sources.items()}
        classes = list(sources.values())
        self._titles = {n: s[1] if classes.count(s) > 1 else n for n, s in sources.items()}
        self._of_flag: dict[str, dict[str, Setting]] = collections.defaultdict(dict)
        for name, settings in self.settings.items():
            for setting in settings.values():
                self._of_flag[setting.flag][name] = setting
                if setting.bounds:
                    bounds.OF_FLAG.setdefault(setting.flag, setting.bounds)
        self.flags = tuple(self._of_flag)

    def define(self, names: Any = None, values: flags.FlagValues = flags.FLAGS) -> None:
        """Define the flags, or those of some `names` of classes. The help of one that is unset says
        whose default is what."""
        for flag in self.flags:
            having = self._of_flag[flag]
            if flag in values or (names is not None and not set(names) & set(having)):
                continue
            setting, default = next(iter(having.values())), self.default(flag)
            text = self.describe(flag)
            if setting.many:
                default = None if default is None else [as_text(item) for item in default]
                flags.DEFINE_list(flag, default, text, flag_values=values)
            elif setting.choices:
                words = [as_text(choice) for choice in setting.choices]
                default = None if default is None else as_text(default)
                flags.DEFINE_enum(flag, default, words, text, flag_values=values)
            else:
                define: dict[type, Callable[..., Any]] = {
                    bool: flags.DEFINE_boolean,
                    int: flags.DEFINE_integer,
                    float: flags.DEFINE_float,
                }
                define.get(setting.kind, flags.DEFINE_string)(
                    flag, default, text, flag_values=values
                )

    def default(self, flag: str) -> Any:
        """The default of the flag itself, None where it is unset; see `unset`."""
        having = self._of_flag[flag]
        agreed = len({as_text(setting.default) for setting in having.values()}) == 1
        shown = len(self.settings) == 1 or (agreed and not self.unset)
        return next(iter(having.values())).default if shown else None

    def describe(self, flag: str) -> str:
        """The help of a flag: what it means, and its default; for which classes, where they
        differ."""
        having = self._of_flag[flag]
        meanings = self._by_value({name: setting.text for name, setting in having.items()})
        text = " ".join(f"{names}: {meaning}" for meaning, names in meanings.items())
        if len(meanings) == 1:
            (text,) = meanings
        if len(self.settings) == 1:
            return text  # as it stands: it may begin with a value, such as tfds:NAME
        if len(meanings) == 1:
            text = text[:1].upper() + text[1:]
        if self.default(flag) is not None:
            return text
        defaults = self._by_value(
            {name: as_text(setting.default) or "none" for name, setting in having.items()}
        )
        if len(defaults) == 1 and len(having) == len(self.settings):
            return f"{text} Default: {next(iter(defaults))}."
        return (
            f"{text} Default: "
            f"{'; '.join(f'{value} for {names}' for value, names in defaults.items())}."
        )

    def _by_value(self, of_name: Mapping[str, str]) -> dict[str, str]:
        """{name: value} -> {value: "name, name"}; names of one class are the class's."""
        names: dict[str, list[str]] = collections.defaultdict(list)
        for name, value in of_name.items():
            names[value].append(self._titles[name])
        return {value: ", ".join(dict.fromkeys(titles)) for value, titles in names.items()}

    def defaults(self, name: str) -> dict[str, Any]:
        """{flag: default} of one class."""
        return {setting.flag: setting.default for setting in self.settings[name].values()}

    def check(self, name: str, given: Mapping[str, Any]) -> None:
        """Refuse what is not a setting of the class, unless it is the default of the flag.

        Args:
          name: of the class.
          given: {flag: value}; None: not given.

        Raises:
          UserError: naming the flag, and those that there are.
        """
        own = self.defaults(name)
        for flag in self.flags:
            if flag not in own and as_text(given.get(flag)) not in (
                "",
                as_text(self.default(flag)),
            ):
                others = f"whose own are {', '.join(own)}" if own else "which has none"
                raise UserError(f"--{flag} is not a setting of {self.kind} {name!r}, {others}")

    def arguments(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The constructor's arguments: {argument: value}, with the default for whatever is not
        `given` as {flag: value}."""
        return {
            argument: setting.default
            if given.get(setting.flag) is None
            else _value(setting, given[setting.flag])
            for argument, setting in self.settings[name].items()
        }

    def make(self, name: str, cls: type, given: Mapping[str, Any]) -> Any:
        """An instance of a class by its flags; see `arguments`.

        Raises:
          UserError: the constructor's own; where that begins with ARGUMENT=, it begins with --FLAG=
            instead.
        """
        try:
            return cls(**self.arguments(name, given))
        except UserError as error:
            argument, equals, rest = str(error).partition("=")
            setting = self.settings[name].get(argument)
            if not (setting and equals):
                raise
            raise UserError(f"--{setting.flag}={rest}") from error


def of(cls: type) -> Generated:
    """The flags of one class, whose defaults they have."""
    return _of(cls.__module__, cls.__name__)


@functools.cache
def of_registry(registry: Registry, *own: str, unset: bool = True) -> Generated:
    """The flags of all classes of a registry; `own`: further names, such as import paths of a
    user's own classes.

    Raises:
      UserError: there is no such class.
    """
    return Generated(
        registry.kind, {name: registry.source(name) for name in (*registry.names, *own)}, unset
    )


@functools.cache
def _of(module: str, name: str) -> Generated:
    return Generated(name, {name: (module, name)})


def _value(setting: Setting, value: Any) -> Any:
    if not setting.many:
        return setting.kind(value) if setting.choices else value
    if setting.kind is float and setting.flag in bounds.OF_FLAG:
        return tuple(bounds.numbers(setting.flag, [str(item) for item in value]))
    try:
        return tuple(setting.kind(item) for item in value)
    except ValueError as error:
        kinds = {int: "integers", float: "numbers"}
        given = ",".join(map(str, value))
        raise UserError(
            f"--{setting.flag}={given}: give {kinds[setting.kind]}, separated by commas"
        ) from error


def as_text(value: Any) -> str:
    """A value as it stands on a command line: true, 0.1, 15,25; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(as_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
