# The shards of a part lie beside its summary and are not outputs: Snakemake deletes the outputs of a job that it starts again, but
# an interrupted part resumes after its last stored epoch.
rule experts_part:
    input:
        unpack(jobs.experts_part.inputs),
    output:
        **jobs.experts_part.outputs,
    log:
        jobs.experts_part.log,
    benchmark:
        jobs.experts_part.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=720,
        gpu=0,
    params:
        **jobs.experts_part.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm experts --config {params.config:q} --dataset {wildcards.dataset} --experts {wildcards.experts}"
        " --part {wildcards.part} --threads {threads} --gpus {resources.gpu:q}"


rule experts:
    input:
        unpack(jobs.experts.inputs),
    output:
        **jobs.experts.outputs,
    log:
        jobs.experts.log,
    benchmark:
        jobs.experts.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=60,
        gpu=0,
    params:
        **jobs.experts.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm experts --config {params.config:q} --dataset {wildcards.dataset} --experts {wildcards.experts}"
        " --collect"


rule difficulty:
    input:
        unpack(jobs.difficulty.inputs),
    output:
        **jobs.difficulty.outputs,
    log:
        jobs.difficulty.log,
    benchmark:
        jobs.difficulty.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=240,
        gpu=0,
    params:
        **jobs.difficulty.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm experts --config {params.config:q} --dataset {wildcards.dataset} --experts {wildcards.experts}"
        " --measure-difficulty --threads {threads} --gpus {resources.gpu:q}"
