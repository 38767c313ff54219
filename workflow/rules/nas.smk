rule nas:
    input:
        unpack(jobs.nas.inputs),
    output:
        **jobs.nas.outputs,
    log:
        jobs.nas.log,
    benchmark:
        jobs.nas.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=480,
        gpu=0,
    params:
        **jobs.nas.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm nas --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --search {wildcards.search} --part {wildcards.part}"
        " --threads {threads} --gpus {resources.gpu:q}"


rule nas_real:
    input:
        unpack(jobs.nas_real.inputs),
    output:
        **jobs.nas_real.outputs,
    log:
        jobs.nas_real.log,
    benchmark:
        jobs.nas_real.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        **jobs.nas_real.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm nas --config {params.config:q} --dataset {wildcards.dataset} --real --search {wildcards.search}"
        " --part {wildcards.part} --threads {threads} --gpus {resources.gpu:q}"
