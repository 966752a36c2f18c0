"""How a child is started: alone, or several of it under accelerate. Pure but for the file it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miyabi_llm.errors import BadUsage

if TYPE_CHECKING:
    from miyabi_llm.engines.base import Job
    from miyabi_llm.tools.envs import Env

STRATEGIES = ("none", "ddp", "fsdp", "zero2", "zero3")


def command(
    env: Env, child: Path, order: Path, job: Job, place: Path, variables: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The words that start the child, and what is added to its environment.

    One process is started directly. Several go through accelerate, with a configuration written to `place`.
    """
    if job.processes <= 1 and not (job.launch or {}).get("machines", 1) > 1:
        return (str(env.python), "-I", "-B", str(child), str(order)), {}
    config = place / "accelerate.json"
    launch = dict(job.launch or {})
    config.write_text(json.dumps(configuration(job.processes, launch)), encoding="utf-8")
    words = ("-I", "-B", "-m", "accelerate.commands.launch", "--config_file", str(config), str(child), str(order))
    # The processes that accelerate starts get no -I from us: what it would do, these variables do.
    more = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if launch.get("cpu") and "OMP_NUM_THREADS" not in variables:
        more["OMP_NUM_THREADS"] = "1"  # one a process, else they stand in each other's way
    return (str(env.python), *words), more


def configuration(processes: int, launch: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration file of `accelerate launch` for `processes` on this machine.

    `launch` says strategy (see STRATEGIES), cpu, precision (fp32, bf16), machines, rank, address, port; the keys are
    those of accelerate 1.15 (accelerate/commands/config/config_args.py). Raises BadUsage.
    """
    strategy = launch.get("strategy", "ddp")
    if strategy not in STRATEGIES:
        raise BadUsage(f"train.launch.strategy {strategy!r} is unknown", hint=f"There are: {', '.join(STRATEGIES)}.")
    machines = int(launch.get("machines", 1))
    cpu = bool(launch.get("cpu"))
    body: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",  # torch's own launcher; with use_cpu it makes processes that speak gloo
        "num_processes": processes * machines,
        "num_machines": machines,
        "machine_rank": int(launch.get("rank", 0)),
        "main_process_ip": launch.get("address") or "127.0.0.1",
        "main_process_port": launch.get("port") or 0,
        "rdzv_backend": "static",
        "mixed_precision": "bf16" if launch.get("precision") == "bf16" else "no",
        "use_cpu": cpu,
        "debug": False,
        "downcast_bf16": "no",
        "main_training_function": "main",
        "same_network": True,
        "enable_cpu_affinity": False,
    }
    if strategy == "fsdp":
        body |= {"distributed_type": "FSDP", "fsdp_config": FSDP}
    elif strategy in ("zero2", "zero3"):
        zero = {
            "zero_stage": int(strategy[-1]),
            "zero3_init_flag": strategy == "zero3",
            "zero3_save_16bit_model": strategy == "zero3",
            "gradient_clipping": 1.0,
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
        }
        body |= {"distributed_type": "DEEPSPEED", "deepspeed_config": zero}
    return body


FSDP = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": False,
    "fsdp_offload_params": False,
    "fsdp_activation_checkpointing": False,
}
