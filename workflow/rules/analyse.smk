# One measurement of a synthetic set, such as its sharpness or its errors along the experts' path.
rule analysis:
    input:
        unpack(jobs.analysis.inputs),
    output:
        **jobs.analysis.outputs,
    log:
        jobs.analysis.log,
    benchmark:
        jobs.analysis.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=240,
        gpu=0,
    params:
        **jobs.analysis.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm analyse --config {params.config:q} --what {wildcards.what} --dataset {wildcards.dataset}"
        " --ipc {wildcards.ipc} --method {wildcards.method} --seed {wildcards.seed} --threads {threads} --gpus {resources.gpu:q}"


rule expert_sharpness:
    input:
        unpack(jobs.expert_sharpness.inputs),
    output:
        **jobs.expert_sharpness.outputs,
    log:
        jobs.expert_sharpness.log,
    benchmark:
        jobs.expert_sharpness.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=240,
        gpu=0,
    params:
        **jobs.expert_sharpness.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm analyse --config {params.config:q} --what expert-sharpness --dataset {wildcards.dataset}"
        " --experts {wildcards.experts} --threads {threads} --gpus {resources.gpu:q}"
