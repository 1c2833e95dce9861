"""Keys of a config.json that cannot change the forward pass, by reason. Any other unread key refuses the model."""

_BY_REASON = {
    "names and bookkeeping": """
        _name_or_path name_or_path architectures auto_map model_type transformers_version transformers.js_config
        torch_dtype dtype tokenizer_class is_llama_config is_composition unsloth_fixed unsloth_version finetuning_task
        task_specific_params prefix quantization_config ignore_index _commit_hash _attn_implementation
        attn_implementation _attn_implementation_autoset cache_implementation base_model_tp_plan""",
    "token ids, which the tokenizer and the generation settings carry": """
        bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id
        forced_eos_token_id bos_token eos_token pad_token suppress_tokens begin_suppress_tokens bad_words_ids""",
    "initialisation, dropout and losses: training only": """
        initializer_range initializer_factor init_std init_method attention_dropout attn_pdrop attn_dropout resid_pdrop
        residual_dropout resid_dropout embd_pdrop emb_pdrop embedding_dropout embd_dropout hidden_dropout dropout
        summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj classifier_dropout
        output_router_logits router_aux_loss_coef router_jitter_noise moe_jitter_eps moe_loss_weight
        pretraining_tp gradient_checkpointing use_bfloat16 tf_legacy_loss pruned_heads""",
    "how transformers runs a model and what it returns": """
        use_cache output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript
        tie_last_hidden_states chunk_size_feed_forward use_flash_attn use_flash_attention attention_softmax_in_fp32
        scale_attention_softmax_in_fp32 inference_runner max_batch_size pad_key_length pre_allocate_kv_cache
        validate_runner_input reorder_and_upcast_attn remove_invalid_values _flash_attn_2_enabled""",
    "default generation settings": """
        do_sample early_stopping max_length min_length max_new_tokens num_beams num_beam_groups num_return_sequences
        diversity_penalty length_penalty repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
        exponential_decay_length_penalty temperature top_k top_p typical_p""",
    "classification heads and encoder-decoder models, none of which is here": """
        id2label label2id num_labels problem_type is_decoder is_encoder_decoder add_cross_attention
        cross_attention_hidden_size tie_encoder_decoder""",
}

INERT_KEYS = frozenset(key for keys in _BY_REASON.values() for key in keys.split())
