<?php

namespace App\Models;

use Illuminate\Database\Eloquent\Model;

/** What a product knows of a platform it uses: its own model, with its own columns. */
final class ProviderPlatform extends Model
{
    public $timestamps = false;

    protected $guarded = [];
}
