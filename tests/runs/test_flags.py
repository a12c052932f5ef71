"""The flags: each is read, YAML and command line agree, mistakes are one sentence."""

import ast

import pytest
import yaml
from parsers import PARSERS
from test_architecture import imports, sources

import buffer
import distill_lors
from distill_utils.runs import flags as config
from distill_utils.runs.errors import UserError

REFERENCE_FLAGS = """
    dataset image_root ann_root image_encoder text_encoder image_size buffer_path num_experts train_epochs
    lr_teacher_img lr_teacher_txt batch_train syn_steps expert_epochs max_start_epoch lr_img lr_txt lr_lr
    lr_sim sim_type sim_rank alpha num_queries mini_batch_size loss_type merge_loss_branches temperature
    pix_init txt_init no_aug Iteration eval_it num_eval epoch_eval_train clamp_lr image_pretrained
    text_pretrained image_trainable momentum_syn momentum_lr momentum_sim resume_from name eval_freq
    ckpt_path seed device gradient second_order precision wandb config
""".split()


def declared(parser):
    return {action.dest for action in parser._actions} - {"help"}


def reachable(module, seen):
    """The files of our own that a module imports, and those that they import, itself among them."""
    if module in sources() and module not in seen:
        seen.add(module)
        for name in imports(sources()[module]):
            reachable(name, seen)
    return seen


def test_the_references_flags_and_the_new_ones_are_there():
    assert set(REFERENCE_FLAGS) <= set().union(*(declared(parser()) for parser in PARSERS.values()))


@pytest.mark.parametrize("program", PARSERS)
def test_every_declared_flag_is_read(program):
    """As `args.flag`, in the program or in what it hands its namespace to."""
    read = {
        node.attr
        for module in reachable(program.split()[0].removesuffix(".py"), set())
        for node in ast.walk(ast.parse(sources()[module].read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    unread = declared(PARSERS[program]()) - read - {"config"}  # config is read by parse itself
    assert not unread


@pytest.mark.parametrize("program", PARSERS)
def test_the_help_tells_the_default_of_each_flag(program):
    parser = PARSERS[program]()
    for action in parser._actions:
        if action.option_strings and not action.required and action.dest != "help":
            assert "default" in parser._get_formatter()._get_help_string(action), action.option_strings


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "args.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "seed": 7,
                "no_aug": True,
                "image_pretrained": False,
                "toy_size": [30, 4, 5],
                "lr_img": 2.5,
                "name": None,
                "_run": {"git": 1},
            }
        )
    )
    args = config.parse(
        distill_lors.make_parser(), ["--config", str(file), "--seed", "9", "--no_aug", "false"]
    )
    assert (args.seed, args.no_aug, args.image_pretrained, args.toy_size, args.lr_img, args.name) == (
        9,
        False,
        False,
        (30, 4, 5),
        2.5,
        None,
    )


@pytest.mark.parametrize(
    "content, words",
    [
        ("sede: 1", "'sede', which is not a flag"),
        ("[1, 2]", "must hold keys and values"),
        ("a: [", "cannot be read as YAML"),
        ("seed: much", "--seed: expected a whole number"),
        ("loss_type: L2", "invalid choice: 'L2'"),
        ("config: other.yaml", "'config', which is not"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, words):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        config.parse(distill_lors.make_parser(), ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dsa", "True"], "--dsa is not a flag of this project"),
        (["--zca=True"], "--zca is not a flag"),
        (["--texture"], "--texture is not a flag"),
        (["--no_such_flag"], "no_such_flag"),
        (["--num_queries", "0"], "--num_queries: expected a whole number of at least 1, not '0'"),
        (["--no_aug", "perhaps"], "--no_aug: expected true or false, not 'perhaps'"),
        (["--lr_img", "nan"], "--lr_img: expected"),
        (["--lr_img", "inf"], "--lr_img: expected"),
        (["--toy_size", "3,4"], "--toy_size: .*three positive"),
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--seed"], "expected one argument"),
    ],
)
def test_bad_flags_are_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words) as error:
        config.parse(distill_lors.make_parser(), arguments)
    assert "\n" not in str(error.value)


def test_switches_stand_alone_and_take_values():
    parse = lambda *arguments: config.parse(buffer.make_parser(), arguments)  # noqa: E731
    assert (
        parse("--no_aug").no_aug
        and parse("--no_aug", "True").no_aug
        and not parse("--no_aug=False").no_aug
        and not parse().no_aug
    )
    assert not parse(
        "--image_pretrained", "False"
    ).image_pretrained  # the reference's type=bool could not say so
