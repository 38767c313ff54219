rule evaluate:
    input:
        unpack(jobs.evaluate.inputs),
    output:
        **jobs.evaluate.outputs,
    log:
        jobs.evaluate.log,
    benchmark:
        jobs.evaluate.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=480,
        gpu=0,
    params:
        **jobs.evaluate.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm evaluate --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --network {wildcards.network} --threads {threads} --gpus {resources.gpu:q}"


rule variants:
    input:
        unpack(jobs.variants.inputs),
    output:
        **jobs.variants.outputs,
    log:
        jobs.variants.log,
    benchmark:
        jobs.variants.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=960,
        gpu=0,
    params:
        **jobs.variants.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm evaluate --config {params.config:q} --what variants --dataset {wildcards.dataset}"
        " --ipc {wildcards.ipc} --method {wildcards.method} --seed {wildcards.seed} --network {wildcards.network}"
        " --threads {threads} --gpus {resources.gpu:q}"


rule full:
    input:
        unpack(jobs.full.inputs),
    output:
        **jobs.full.outputs,
    log:
        jobs.full.log,
    benchmark:
        jobs.full.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        **jobs.full.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm evaluate --config {params.config:q} --what full --dataset {wildcards.dataset}"
        " --recipe {wildcards.recipe} --network {wildcards.network} --threads {threads} --gpus {resources.gpu:q}"
